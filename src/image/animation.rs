//! Videos as files: animated GIF and WebP.
//!
//! A GIF has at most 256 colours per frame and durations in hundredths of a second; a WebP is exact. A video for players is what
//! other programs make of frames.

use super::Image;
use crate::error::{Error, Result};
use crate::whole_file;
use image::codecs::gif::{GifEncoder, Repeat};
use image::codecs::webp::WebPEncoder;
use image::{Delay, ExtendedColorType, Frame, RgbaImage};
use std::io::{self, Write};
use std::path::Path;

/// Frames per second that a video may have.
pub const FRAME_RATES: std::ops::RangeInclusive<u32> = 1..=100;
/// How far the search for a GIF's colours may cut corners, 1 to 30: not at all, which costs less than a step.
const GIF_SPEED: i32 = 1;
/// Largest side of a WebP.
const WEBP_SIDE: u32 = 1 << 14;

/// Writes `frames` of equal size, `rate` a second, to `path` as an animated GIF that repeats. The file appears whole or not at
/// all.
///
/// # Errors
/// [`Error::Request`] if there is no frame, or a side is too large for the format; [`Error::Io`] if the file cannot be written.
pub fn write_gif(path: &Path, frames: &[Image], rate: u32) -> Result<()> {
    check(frames, rate, u32::from(u16::MAX))?;
    let frame = |image: &Image| {
        let rgba = RgbaImage::from_raw(image.width(), image.height(), rgba(image));
        rgba.map(|rgba| Frame::from_parts(rgba, 0, 0, Delay::from_numer_denom_ms(1000, rate)))
    };
    whole_file::write(path, |file| {
        let mut encoder = GifEncoder::new_with_speed(file, GIF_SPEED);
        encoder.set_repeat(Repeat::Infinite).map_err(io::Error::other)?;
        encoder.encode_frames(frames.iter().filter_map(frame)).map_err(io::Error::other)
    })
}

/// Writes `frames` of equal size, `rate` a second, to `path` as an animated WebP without losses that repeats. The file appears
/// whole or not at all.
///
/// # Errors
/// As [`write_gif`].
pub fn write_webp(path: &Path, frames: &[Image], rate: u32) -> Result<()> {
    check(frames, rate, WEBP_SIDE)?;
    whole_file::write(path, |file| file.write_all(&webp(frames, rate)?))
}

/// Refuses what no animation can have.
fn check(frames: &[Image], rate: u32, most: u32) -> Result<()> {
    let Some(first) = frames.first() else {
        return Err(Error::request("frames", "at least one", "none"));
    };
    if !FRAME_RATES.contains(&rate) {
        return Err(Error::request("fps", "1 to 100 frames a second", rate));
    }
    let size = [first.width(), first.height()];
    if let Some(other) = frames.iter().find(|frame| [frame.width(), frame.height()] != size) {
        let expected = format!("{} x {}, as the first has", first.width(), first.height());
        return Err(Error::request("frames", expected, format!("{} x {}", other.width(), other.height())));
    }
    match size.iter().max() {
        Some(&side) if side > most => Err(Error::request("frames", format!("at most {most} pixels on a side"), side)),
        _ => Ok(()),
    }
}

/// Four bytes per pixel.
fn rgba(image: &Image) -> Vec<u8> {
    let pixel = |pixel: &[u8]| match *pixel {
        [grey] => [grey, grey, grey, u8::MAX],
        [r, g, b] => [r, g, b, u8::MAX],
        [r, g, b, a] => [r, g, b, a],
        _ => [0; 4],
    };
    image.bytes().chunks_exact(image.channels()).flat_map(pixel).collect()
}

/// The bytes of an animated WebP (RFC 9649, section 2.7.1): the chunks that the encoder makes of each frame, in frames of an
/// animation.
fn webp(frames: &[Image], rate: u32) -> io::Result<Vec<u8>> {
    const ANIMATION: u8 = 1 << 1;
    const ALPHA: u8 = 1 << 4;
    let (width, height) = (frames[0].width(), frames[0].height());
    let u24 = |n: u32| n.to_le_bytes().into_iter().take(3);
    let size = || u24(width - 1).chain(u24(height - 1));
    let mut out = b"WEBP".to_vec();
    chunk(&mut out, b"VP8X", &[ANIMATION | ALPHA, 0, 0, 0].into_iter().chain(size()).collect::<Vec<_>>());
    // A transparent background, and no end of repeating.
    chunk(&mut out, b"ANIM", &[0; 6]);
    for (i, image) in frames.iter().enumerate() {
        let mut still = Vec::new();
        WebPEncoder::new_lossless(&mut still)
            .encode(&rgba(image), width, height, ExtendedColorType::Rgba8)
            .map_err(io::Error::other)?;
        let Some(picture) = pictures(&still) else {
            return Err(io::Error::other("the WebP encoder made no picture"));
        };
        // Ends of frames are rounded, so that errors do not add up.
        let at = |i: usize| (i as u64 * 1000 / u64::from(rate)) as u32;
        let mut frame: Vec<u8> = u24(0).chain(u24(0)).chain(size()).chain(u24(at(i + 1) - at(i))).collect();
        // Not blended with the frame before.
        frame.push(1 << 1);
        frame.extend_from_slice(picture);
        chunk(&mut out, b"ANMF", &frame);
    }
    let mut file = Vec::with_capacity(out.len() + 8);
    chunk(&mut file, b"RIFF", &out);
    Ok(file)
}

/// Appends a chunk; its length counts no padding.
fn chunk(to: &mut Vec<u8>, name: &[u8; 4], bytes: &[u8]) {
    to.extend_from_slice(name);
    to.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    to.extend_from_slice(bytes);
    to.extend(std::iter::repeat_n(0, bytes.len() % 2));
}

/// The chunk of pixels of a still WebP, with its name and length.
fn pictures(still: &[u8]) -> Option<&[u8]> {
    let mut rest = still.get(12..)?;
    loop {
        let length = u32::from_le_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
        let end = 8 + length + length % 2;
        if rest.starts_with(b"VP8L") {
            return rest.get(..end);
        }
        rest = rest.get(end..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;
    use image::codecs::webp::WebPDecoder;
    use std::io::Cursor;

    /// Three frames of few colours, so that a GIF can hold them, of odd sizes.
    fn frames() -> Vec<Image> {
        let frame = |k: u32| {
            let bytes = (0..5 * 7 * 3).map(|i| (((i * 7 + k * 31) % 5) * 60) as u8).collect();
            Image::new(7, 5, 3, bytes)
        };
        (0..3).map(frame).collect()
    }

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("aquatint-animation-{}-{name}", std::process::id()))
    }

    fn same(read: Vec<Frame>, rate: u32) {
        assert_eq!(read.len(), 3);
        for (frame, wanted) in read.iter().zip(frames()) {
            assert!(frame.buffer().as_raw() == &rgba(&wanted));
            let (ms, of) = frame.delay().numer_denom_ms();
            assert!((f64::from(ms) / f64::from(of) - 1000.0 / f64::from(rate)).abs() <= 10.0, "{ms}/{of}");
        }
    }

    #[test]
    fn animations_are_read_as_they_were_written() {
        let [gif, webp] = ["a.gif", "a.webp"].map(path);
        write_gif(&gif, &frames(), 10).unwrap();
        write_webp(&webp, &frames(), 8).unwrap();
        let read = |path: &Path| Cursor::new(std::fs::read(path).unwrap());
        same(GifDecoder::new(read(&gif)).unwrap().into_frames().collect_frames().unwrap(), 10);
        same(WebPDecoder::new(read(&webp)).unwrap().into_frames().collect_frames().unwrap(), 8);
        [gif, webp].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }

    #[test]
    fn what_no_animation_can_have_is_refused() {
        let refused = |frames: &[Image], rate, why: &str| {
            let error = write_webp(&path("none.webp"), frames, rate).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(&[], 8, "at least one");
        refused(&frames(), 0, "1 to 100");
        refused(&[Image::of_pixels(2, 2, 3, 0), Image::of_pixels(2, 3, 3, 0)], 8, "as the first");
        refused(&[Image::of_pixels(20_000, 1, 1, 0)], 8, "16384 pixels");
    }
}
