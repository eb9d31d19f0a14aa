//! Where `aquatint run` puts what it made: pictures, sheets of them, and videos.

use aquatint::image::{Image, write_gif, write_webp};
use aquatint::raw::whole_file::WholeFile;
use aquatint::{Error, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Endings that name kinds of pictures which nothing here writes.
const NOT_WRITTEN: [&str; 7] = ["jpg", "jpeg", "jxl", "bmp", "tif", "tiff", "avif"];

/// What `--output` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One PNG of all pictures.
    Sheet,
    /// A PNG for each.
    Pictures,
    /// One video file for each.
    Video(VideoFormat),
}

/// A kind of video file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoFormat {
    /// Animated, 256 colours a frame.
    Gif,
    /// Animated, exact.
    Webp,
    /// What ffmpeg makes.
    Mp4,
}

impl Target {
    /// What `output` names, of a model that makes videos or does not.
    ///
    /// # Errors
    /// [`Error::Request`] if its ending says what is not written, or ffmpeg is needed and not there.
    pub fn of(output: &str, video: bool) -> Result<Self> {
        let written = Path::new(output).extension().unwrap_or_default().to_string_lossy();
        let ending = written.to_ascii_lowercase();
        let format = match &ending[..] {
            "gif" => Some(VideoFormat::Gif),
            "webp" => Some(VideoFormat::Webp),
            "mp4" => Some(VideoFormat::Mp4),
            _ => None,
        };
        // What is written is a PNG; a name that says otherwise would be believed.
        if NOT_WRITTEN.contains(&&ending[..]) || format.is_some() && !video {
            let expected =
                if video { "a name that ends in .png, .gif, .webp or .mp4" } else { "a name that ends in .png" };
            return Err(Error::request(format!("output {output}"), expected, format!(".{written}")));
        }
        match format {
            Some(VideoFormat::Mp4) if !has_ffmpeg() => {
                let expected = "ffmpeg on PATH, or a name that ends in .gif, .webp or .png";
                Err(Error::request(format!("output {output}"), expected, "none"))
            }
            Some(format) => Ok(Target::Video(format)),
            None if output.contains('%') => Ok(Target::Pictures),
            None => Ok(Target::Sheet),
        }
    }
}

/// The pattern that `output` stands for: of a folder, that of files for each frame in it.
pub fn pattern(output: &str, video: bool) -> String {
    let folder = output.ends_with('/') || Path::new(output).is_dir();
    match folder && video {
        true => PathBuf::from(output).join("frame_%03d.png").display().to_string(),
        false => output.to_owned(),
    }
}

/// Writes `frames` to `path`, `rate` a second.
///
/// # Errors
/// As those of [`write_gif`]; [`Error::Request`] if ffmpeg refuses.
pub fn write_video(format: VideoFormat, path: &Path, frames: &[Image], rate: u32) -> Result<()> {
    match format {
        VideoFormat::Gif => write_gif(path, frames, rate),
        VideoFormat::Webp => write_webp(path, frames, rate),
        VideoFormat::Mp4 => write_mp4(path, frames, rate),
    }
}

fn has_ffmpeg() -> bool {
    let tried = Command::new("ffmpeg").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// H.264 in the colours that every player knows, which halves the resolution of colour.
fn write_mp4(path: &Path, frames: &[Image], rate: u32) -> Result<()> {
    let Some(first) = frames.first() else { return Err(Error::request("frames", "at least one", "none")) };
    let format = match first.channels() {
        1 => "gray",
        4 => "rgba",
        _ => "rgb24",
    };
    let file = WholeFile::create(path)?;
    let size = format!("{}x{}", first.width(), first.height());
    let mut child = Command::new("ffmpeg")
        .args(["-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", format, "-s", &size, "-r", &rate.to_string()])
        // Sides must be even. Players take large pictures for BT.709 and small ones for BT.601 unless they are told.
        .args(["-i", "-", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2,scale=out_color_matrix=bt709:out_range=tv"])
        .args(["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"])
        // Visually without loss, and the index first, so that a player may begin before it has all.
        .args(["-crf", "17", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"])
        .arg(file.temporary())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("run", Path::new("ffmpeg")))?;
    let sent = child.stdin.take().map_or(Ok(()), |mut pipe| frames.iter().try_for_each(|f| pipe.write_all(f.bytes())));
    let done = child.wait_with_output().map_err(Error::io("run", Path::new("ffmpeg")))?;
    match (done.status.success(), sent) {
        (true, Ok(())) => file.commit(),
        _ => {
            let said = String::from_utf8_lossy(&done.stderr);
            let said = said.lines().next().unwrap_or("nothing").to_owned();
            Err(Error::request(format!("output {}", path.display()), "frames that ffmpeg takes", said))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_name_what_is_written() {
        for (output, target) in [
            ("a.png", Target::Sheet),
            ("a_%d.png", Target::Pictures),
            ("a.GIF", Target::Video(VideoFormat::Gif)),
            ("a_%d.webp", Target::Video(VideoFormat::Webp)),
        ] {
            assert!(matches!(Target::of(output, true), Ok(got) if got == target), "{output}");
        }
        for (output, video) in [("a.gif", false), ("a.webp", false), ("a.jpg", true), ("a.mp4", false)] {
            assert!(Target::of(output, video).is_err(), "{output}");
        }
        assert_eq!(pattern("x/", true), "x/frame_%03d.png");
        assert_eq!(pattern("x/y.png", true), "x/y.png");
    }
}
