//! Videos: frames, video files, and what is said of them.

use super::run::{directory, finish, json, program, refuses, save, works};
use aquatint::image::Picture;
use image::AnimationDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The tiny Latte, packed once.
fn latte() -> &'static str {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let options = packer::emit::Options {
            model: common::repository("tests/fixtures/latte"),
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

/// A request that memory is short for is told what would fit: so many bytes, fewer frames, or a smaller size. What is said holds to
/// the byte, the frame and the size.
#[test]
fn what_fits_into_memory_is_told_and_fits() {
    let dir = directory("memory");
    let run = |more: &[&str]| {
        let arguments = ["run", latte(), "-p", "fog", "--steps", "1", "-o", "a.gif", "--quiet"];
        finish(&mut program(&dir, &[&arguments, more].concat()))
    };
    let asked = ["--frames", "64", "-W", "48", "-H", "32"];
    let short = |memory: &str, size: &[&str]| run(&[&["--max-memory", memory], size].concat());
    let refused = short("1000000", &asked);
    assert_eq!((refused.code, refused.err.lines().count()), (Some(2), 1), "{}", refused.err);
    let said: Vec<&str> = refused.err.split([' ', ',']).collect();
    let after =
        |word: &str| said[said.iter().position(|w| *w == word).unwrap_or_else(|| panic!("{}", refused.err)) + 1];
    let (bytes, frames, width, height) = (after("least"), after("--frames"), after("-W"), after("-H"));
    assert!(refused.err.contains("for a video of 64 frames, or --frames"), "{}", refused.err);
    let less = (bytes.parse::<usize>().unwrap() - 1).to_string();
    let more = (frames.parse::<usize>().unwrap() + 1).to_string();
    for (memory, size, fits) in [
        (bytes, &asked[..], true),
        (&less, &asked[..], false),
        ("1000000", &["--frames", frames, "-W", "48", "-H", "32"], true),
        ("1000000", &["--frames", &more, "-W", "48", "-H", "32"], false),
        ("1000000", &["--frames", "64", "-W", width, "-H", height], true),
    ] {
        let ran = short(memory, size);
        assert_eq!(ran.code == Some(0), fits, "{memory} {size:?}: {}", ran.err);
    }
    // Too little for anything: only bytes are named, and they are enough.
    let refused = short("100", &["--frames", "2", "-W", "16", "-H", "16"]);
    let said: Vec<&str> = refused.err.split(' ').collect();
    let bytes = said[said.iter().position(|w| *w == "least").unwrap() + 1];
    assert!(!refused.err.contains("which fits"), "{}", refused.err);
    assert_eq!(short(bytes, &["--frames", "2", "-W", "16", "-H", "16"]).code, Some(0), "{}", refused.err);
}

/// What is no video, or none of this model's, is refused before anything is made.
#[test]
fn inputs_of_other_shapes_are_refused() {
    let dir = directory("inputs");
    let refused = |name: &str, tensors: &[(&str, &[usize])], more: &[&str], words: &[&str]| {
        let values = vec![
            if name == "grey" { 0.25 } else { 1.0 };
            tensors.iter().map(|t| t.1.iter().product()).max().unwrap_or(0)
        ];
        let named: Vec<_> = tensors.iter().map(|t| (t.0, t.1, &values[..t.1.iter().product()])).collect();
        let path = dir.join(format!("{name}.safetensors"));
        save(&path, &named);
        let inputs = ["run", latte(), "--steps", "1", "-o", "a.gif", "--inputs", path.to_str().unwrap()];
        refuses(&dir, &[&inputs, more].concat(), words);
    };
    let prompt = ["-p", "fog"];
    refused(
        "image",
        &[("latents", &[1, 4, 8, 8])],
        &prompt,
        &["latents: expected [n, 4, frames, h, w], got [1, 4, 8, 8]"],
    );
    refused(
        "frames",
        &[("latents", &[1, 4, 5, 8, 8])],
        &[&prompt[..], &["--frames", "3"]].concat(),
        &["frames: expected 5, as the latents have, got 3"],
    );
    let embeds = |width: usize, negative: usize| -> [(&str, Vec<usize>); 2] {
        [("prompt_embeds", vec![1, 7, width]), ("negative_prompt_embeds", vec![1, negative, 20])]
    };
    let as_slices = |embeds: [(&'static str, Vec<usize>); 2], mask: [usize; 2], name: &str, words: &[&str]| {
        let mask_axes = mask.to_vec();
        let tensors =
            [(embeds[0].0, &embeds[0].1[..]), (embeds[1].0, &embeds[1].1[..]), ("prompt_mask", &mask_axes[..])];
        refused(name, &tensors, &[], words);
    };
    as_slices(embeds(21, 7), [1, 7], "width", &["prompt_embeds: expected [n, tokens, 20], got [1, 7, 21]"]);
    as_slices(embeds(20, 7), [1, 6], "mask", &["prompt_mask: expected [1, 7], as the features have, got [1, 6]"]);
    as_slices(embeds(20, 7), [2, 7], "rows", &["prompt_mask: expected [1, 7]"]);
    as_slices(embeds(20, 7), [1, 7], "grey", &["prompt_mask: expected 1 where a token counts, else 0, got 0.25"]);
    let two = [("prompt_embeds", &[1, 7, 20][..]), ("negative_prompt_embeds", &[2, 7, 20])];
    refused("negative", &two, &[], &["negative_prompt_embeds: expected 1 prompts of [7] tokens, got 2"]);
    refused("alone", &[("prompt_embeds", &[1, 7, 20])], &[], &["negative_prompt_embeds beside prompt_embeds"]);
    // A video does not begin with a picture.
    let picture = common::repository("tests/fixtures/pictures/noise.png");
    let init = ["run", latte(), "-p", "fog", "-o", "a.gif", "--init-image", picture.to_str().unwrap()];
    refuses(&dir, &init, &["init-image: expected a model that makes images", "got one that makes videos"]);
    let binned = ["run", latte(), "-p", "fog", "-o", "a.gif", "-W", "32", "-H", "32", "--resolution-binning"];
    refuses(&dir, &binned, &["resolution-binning: expected a model with a list of the sizes"]);
}

/// Where there is ffmpeg, a video for players, decoded again, shows what the frames show; where there is none, who asks for one is
/// told so.
#[test]
fn videos_for_players_are_made_by_ffmpeg() {
    let dir = directory("mp4");
    let arguments = ["run", latte(), "-p", "fog", "--steps", "1", "--frames", "16", "-W", "48", "-H", "32", "--quiet"];
    let run = |more: &[&str]| finish(&mut program(&dir, &[&arguments[..], more].concat()));
    let ran = run(&["-o", "a.mp4"]);
    if ran.code != Some(0) {
        eprintln!("SKIPPED: no ffmpeg on PATH, so no MP4 was made and looked at");
        assert!(ran.err.contains("expected ffmpeg on PATH"), "{}", ran.err);
        return;
    }
    assert_eq!(run(&["-o", "n_%02d.png"]).code, Some(0));
    let decode = ["-v", "error", "-i", "a.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"];
    let decoded = Command::new("ffmpeg").args(decode).current_dir(&dir).output().expect("ffmpeg starts");
    assert!(decoded.status.success(), "{}", String::from_utf8_lossy(&decoded.stderr));
    assert_eq!(decoded.stdout.len(), 16 * 48 * 32 * 3, "frames, sides and channels");
    let grey = |pixel: [f32; 3]| 0.2126 * pixel[0] + 0.7152 * pixel[1] + 0.0722 * pixel[2];
    for (k, frame) in decoded.stdout.chunks_exact(48 * 32 * 3).enumerate() {
        let picture =
            Picture::read(&dir.join(format!("n_{k:02}.png"))).unwrap().values([32, 48], Default::default(), 3);
        let pixels = |values: &[f32]| values.chunks_exact(3).map(|p| grey([p[0], p[1], p[2]])).collect::<Vec<_>>();
        let frame: Vec<f32> = frame.iter().map(|&byte| f32::from(byte) / 255.0).collect();
        let (got, want) = (pixels(&frame), pixels(&picture));
        let error = got.iter().zip(&want).map(|(a, b)| f64::from((a - b).powi(2))).sum::<f64>() / got.len() as f64;
        println!("frame {k}: {:.1} dB", -10.0 * error.log10());
        // The encoder is asked for some 40 dB of brightness; another order of rows, colours or frames has less than 20.
        assert!(error < 1e-3, "frame {k}: {:.1} dB", -10.0 * error.log10());
    }
}
