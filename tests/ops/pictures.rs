//! Pictures as they are read, against Pillow's bytes (`fixtures/make_pictures.py`): kinds of files, orientation,
//! brightness, sizes.

use aquatint::image::{Picture, ResizeMode};
use common::fixture::Fixture;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures").join(name)
}

fn want() -> Fixture {
    Fixture::open(&path("want.safetensors"))
}

/// Values in 0..1 as bytes.
fn bytes(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| (v * 255.0).round()).collect()
}

/// Largest difference of bytes.
fn off(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The parts of a key `file.mode.HxW`.
fn parts(key: &str) -> Option<(&str, ResizeMode, [usize; 2])> {
    let (rest, size) = key.rsplit_once('.')?;
    let (file, mode) = rest.rsplit_once('.')?;
    let (h, w) = size.split_once('x')?;
    let mode = match mode {
        "stretch" => ResizeMode::Stretch,
        "crop" => ResizeMode::Crop,
        "pad" => ResizeMode::Pad,
        _ => return None,
    };
    Some((file, mode, [h.parse().ok()?, w.parse().ok()?]))
}

#[test]
fn files_are_read_as_pillow_reads_them() {
    let want = want();
    let mut seen = 0;
    for key in want.names() {
        let Some(file) = key.strip_suffix(".rgb") else { continue };
        let picture = Picture::read(&path(file)).unwrap();
        let (rgb, dims) = want.get(&key);
        assert_eq!(picture.size(), dims[..2], "{file}");
        // Decoders of JPEG round differently.
        let most = if file.ends_with(".jpg") { 2.0 } else { 0.0 };
        for (channels, want) in [(3, rgb), (1, want.get(&format!("{file}.grey")).0)] {
            let got = bytes(&picture.values(picture.size(), ResizeMode::Stretch, channels));
            let off = off(&got, &want);
            assert!(off <= most, "{file}, {channels} channels: off by {off}");
        }
        seen += 1;
    }
    assert!(seen > 20, "{seen} files");
}

#[test]
fn sizes_are_made_as_pillow_makes_them() {
    let want = want();
    let mut seen = [0; 2];
    for key in want.names() {
        let (mask, name) = key.strip_prefix("mask-").map_or((false, &*key), |name| (true, name));
        let Some((file, mode, size)) = parts(name) else { continue };
        let (wanted, dims) = want.get(&key);
        let picture = Picture::read(&path(file)).unwrap();
        let got = match mask {
            true => picture.mask(size, mode),
            false => bytes(&picture.values(size, mode, dims[2])),
        };
        let wrong = got.iter().zip(&wanted).filter(|(a, b)| a != b).count();
        assert!(got.len() == wanted.len() && wrong == 0, "{key}: {wrong} of {} differ", wanted.len());
        seen[usize::from(mask)] += 1;
    }
    assert_eq!(seen, [40, 36]);
}

/// Grey of 16 bits alone is not Pillow's, which clips it at 255.
#[test]
fn grey_of_16_bits_is_scaled() {
    let folder = std::env::temp_dir().join(format!("aquatint-grey-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("grey.png");
    let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 3, 1);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[0, 200, 0x80, 0x40, 0xff, 0xff]).unwrap();
    writer.finish().unwrap();
    let picture = Picture::read(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(bytes(&picture.values([1, 3], ResizeMode::Stretch, 1)), [1.0, 128.0, 255.0]);
}

/// What would be cut off is not made: it would not fit into any memory.
#[test]
fn a_line_can_be_cropped() {
    let folder = std::env::temp_dir().join(format!("aquatint-line-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("line.png");
    let mut encoder = png::Encoder::new(std::fs::File::create(&path).unwrap(), 16384, 1);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[77; 16384]).unwrap();
    writer.finish().unwrap();
    let picture = Picture::read(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    for mode in [ResizeMode::Crop, ResizeMode::Pad] {
        let values = bytes(&picture.values([1024, 64], mode, 3));
        assert!(values.len() == 1024 * 64 * 3 && values.iter().all(|&v| v == 77.0), "{mode:?}");
    }
}

#[test]
fn what_is_no_picture_is_refused() {
    let message = Picture::read(&path("want.safetensors")).unwrap_err().to_string();
    assert!(message.contains("want.safetensors: expected a PNG, JPEG, WebP or BMP picture"), "{message}");
    assert!(!message.contains('\n'), "{message}");
}
