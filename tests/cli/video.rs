//! Videos: frames, video files, and what is said of them.

use super::run::{directory, finish, json, program, works};
use aquatint::image::Picture;
use image::AnimationDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The tiny Latte, packed once.
fn latte() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let options = packer::emit::Options {
            model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/latte"),
            q_config: Some("f32".into()),
            output: directory("latte").join("latte.aqt"),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        options.output
    });
    path.to_str().expect("UTF-8")
}

#[test]
fn a_video_is_one_file_or_frames_or_a_sheet() {
    let dir = directory("videos");
    let run = |output: &str, more: &[&str]| {
        let arguments = ["run", latte(), "-p", "a red cat", "--steps", "2", "-W", "24", "-H", "16", "-o", output];
        works(&dir, &[&arguments, more].concat())
    };
    run("a.gif", &["--fps", "10"]);
    run("a.webp", &[]);
    run("frames/", &[]);
    run("n_%02d.png", &[]);
    run("sheet.png", &["--n-imgs", "2"]);
    let read = |name: &str| Cursor::new(fs::read(dir.join(name)).expect(name));
    let gif = GifDecoder::new(read("a.gif")).unwrap().into_frames().collect_frames().unwrap();
    let webp = WebPDecoder::new(read("a.webp")).unwrap().into_frames().collect_frames().unwrap();
    assert_eq!((gif.len(), webp.len()), (3, 3));
    assert_eq!(gif[0].delay().numer_denom_ms(), (100, 1));
    for (k, frame) in webp.iter().enumerate() {
        let png = fs::read(dir.join(format!("n_{k:02}.png"))).unwrap();
        assert!(png == fs::read(dir.join(format!("frames/frame_{k:03}.png"))).unwrap());
        let picture = Picture::read(&dir.join(format!("n_{k:02}.png"))).unwrap();
        assert_eq!(picture.size(), [16, 24]);
        let pixels: Vec<f32> =
            frame.buffer().pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).map(|v| f32::from(v) / 255.0).collect();
        let wanted = picture.values([16, 24], Default::default(), 3);
        assert!(pixels.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-6), "frame {k}");
    }
    // A row for each video, a gap of two pixels between pictures.
    assert_eq!(Picture::read(&dir.join("sheet.png")).unwrap().size(), [16 + 2 + 16, 24 + 2 + 24 + 2 + 24]);
}

#[test]
fn numbers_of_frames_are_asked_for_and_told() {
    let dir = directory("frames");
    let run = |more: &[&str]| {
        let arguments = ["run", latte(), "-p", "fog", "--steps", "1", "-W", "16", "-H", "16"];
        finish(&mut program(&dir, &[&arguments, more].concat()))
    };
    let ran = run(&["--frames", "5", "-o", "a.gif"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.err, "note: the model was made for 3 frames, not for 5\n");
    assert!(ran.out.contains("1 video, "), "{}", ran.out);
    let told =
        json(&dir, &["run", latte(), "-p", "fog", "--steps", "1", "-W", "16", "-H", "16", "-o", "b.webp", "--json"]);
    assert_eq!((told["frames"].as_u64(), told["images"].as_u64()), (Some(3), Some(1)));
    for (more, why) in [
        (&["--frames", "0", "-o", "a.gif"][..], "frames: expected 1 to 4096, got 0"),
        (&["--frames", "64", "--max-memory", "400k", "-o", "a.gif"], "which fits"),
        (&["--fps", "8", "-o", "a.png"], "an output that ends in .gif, .webp or .mp4"),
        (&["-o", "a.jpg"], "a name that ends in .png, .gif, .webp or .mp4"),
    ] {
        let ran = run(more);
        assert!(ran.code == Some(2) || ran.code == Some(1), "{more:?}: {:?}", ran.code);
        assert!(ran.err.contains(why), "{more:?}: {}", ran.err);
        let lines: Vec<_> = ran.err.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert_eq!(lines.len(), 1, "{}", ran.err);
    }
    for more in [&["--frames", "3"][..], &["--fps", "8"], &["-o", "a.gif"]] {
        let ran = finish(&mut program(&dir, &[&["run", "--steps", "1"], more].concat()));
        assert!(ran.code != Some(0) && ran.err.lines().count() == 1, "{more:?}: {}", ran.err);
    }
}

/// Where there is ffmpeg; where there is none, who asks for what it makes is told so.
#[test]
fn videos_for_players_are_made_by_ffmpeg() {
    let dir = directory("mp4");
    let arguments = ["run", latte(), "-p", "fog", "--steps", "1", "-W", "16", "-H", "16", "-o", "a.mp4"];
    let ran = finish(&mut program(&dir, &arguments));
    match ran.code {
        Some(0) => assert!(fs::read(dir.join("a.mp4")).unwrap()[4..].starts_with(b"ftyp")),
        _ => assert!(ran.err.contains("expected ffmpeg on PATH"), "{}", ran.err),
    }
}
