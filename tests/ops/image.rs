//! Pictures: rounding, grids, PNG files with text, and that a failed write leaves nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aquatint::image::{GAP, Image, from_nhwc, grid, numbered, read_text, write_png};

/// An empty directory of its own for each test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("aquatint-image-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a fresh directory");
        Scratch(path)
    }

    fn names(&self) -> Vec<String> {
        let entry = |e: std::io::Result<fs::DirEntry>| e.expect("an entry").file_name().into_string().expect("UTF-8");
        let mut names: Vec<_> = fs::read_dir(&self.0).expect("the directory").map(entry).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn gradient(width: u32, height: u32) -> Image {
    let pixel = |i: u32| (i % width, i / width);
    let bytes = (0..width * height).map(pixel).flat_map(|(x, y)| [(x * 7) as u8, (y * 11) as u8, (x + y) as u8]);
    Image::new(width, height, 3, bytes.collect())
}

fn size(image: &Image) -> (u32, u32) {
    (image.width(), image.height())
}

/// What a PNG file holds: size, bytes, tEXt pairs, iTXt pairs.
type Contents = ((u32, u32), Vec<u8>, Vec<(String, String)>, Vec<(String, String)>);

fn read(path: &Path) -> Contents {
    let file = std::io::BufReader::new(fs::File::open(path).expect("the file"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
    let info = reader.next_frame(&mut bytes).expect("a frame");
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight));
    let all = reader.info();
    let plain = all.uncompressed_latin1_text.iter().map(|c| (c.keyword.clone(), c.text.clone())).collect();
    let wide = all.utf8_text.iter().map(|c| (c.keyword.clone(), c.get_text().expect("text"))).collect();
    ((info.width, info.height), bytes, plain, wide)
}

#[test]
fn values_become_bytes_as_in_diffusers() {
    // (x * 255).round() of numpy: halves go to the even byte. 0.5 -> 127.5 -> 128; 2.5 / 255 -> 2.
    let values = [0.0, 1.0, 0.5, -3.0, 7.0, 2.5 / 255.0, 3.5 / 255.0, 0.499 / 255.0, 254.6 / 255.0, 0.2, 0.4, 0.6];
    let images = from_nhwc(&values, 2, 1, 2, 3).expect("two pictures");
    assert_eq!(images.len(), 2);
    assert_eq!(size(&images[0]), (2, 1));
    assert_eq!(images[0].bytes(), [0, 255, 128, 0, 255, 2]);
    assert_eq!(images[1].bytes(), [4, 0, 255, 51, 102, 153]);
    // Channels are last, rows come first: pixel (x 1, y 0) is values 3..6.
    assert_eq!(images[0].pixel(1, 0), [0, 255, 2]);
    let tall = from_nhwc(&values, 1, 4, 1, 3).expect("one picture");
    assert_eq!((size(&tall[0]), tall[0].pixel(0, 1)), ((1, 4), &[0, 255, 2][..]));
}

#[test]
fn wrong_values_are_refused() {
    let told = |values: &[f32], n, h, w, word: &str| {
        let text = from_nhwc(values, n, h, w, 3).expect_err("refused").to_string();
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    };
    told(&[0.0; 11], 1, 2, 2, "1 x 2 x 2 x 3");
    told(&[0.0; 11], 1, 2, 2, "11 values");
    told(&[], 1, 0, 2, "above 0");
    told(&[], usize::MAX, u32::MAX, u32::MAX, "0 values");
    told(&[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0], 2, 1, 1, "NaN at value 1 of picture 1");
    told(&[0.0, f32::INFINITY, 0.0], 1, 1, 1, "inf");
}

#[test]
fn grid_places_pictures_in_rows() {
    let solid = |shade: u8| Image::of_pixels(4, 3, 3, shade);
    let images: Vec<_> = (1..=5).map(|i| solid(i * 40)).collect();
    let sheet = grid(&images, 2).expect("a grid");
    assert_eq!(size(&sheet), (2 * 4 + GAP, 3 * 3 + 2 * GAP));
    assert_eq!(sheet.pixel(0, 0), [40; 3]);
    assert_eq!(sheet.pixel(4 + GAP, 0), [80; 3]);
    assert_eq!(sheet.pixel(3, 2 * (3 + GAP)), [200; 3]);
    assert_eq!(sheet.pixel(4, 0), [255; 3], "the gap is white");
    assert_eq!(sheet.pixel(4 + GAP, 2 * (3 + GAP)), [255; 3], "the empty cell is white");
    assert_eq!(grid(&images[..1], 8).expect("a grid"), images[0]);
    let mixed = grid(&[solid(1), gradient(9, 2)], 2).expect("a grid");
    assert_eq!(size(&mixed), (2 * 9 + GAP, 3));
    assert!(grid(&[], 2).is_err() && grid(&images, 0).is_err());
}

#[test]
fn png_round_trips_with_its_text() {
    let scratch = Scratch::new("text");
    let path = scratch.0.join("a.png");
    let image = gradient(33, 17);
    let latin = "a caf\u{e9}\nNegative prompt: rain";
    write_png(&path, &image, &[("parameters", latin), ("Title", "\u{732b} and \u{1f408}")]).expect("written");
    let (size, bytes, plain, wide) = read(&path);
    assert_eq!((size, &bytes[..]), ((33, 17), image.bytes()));
    assert_eq!(plain, [("parameters".to_string(), latin.to_string())]);
    assert_eq!(wide, [("Title".to_string(), "\u{732b} and \u{1f408}".to_string())]);
    // The chunk's raw bytes are Latin-1, not UTF-8.
    let raw = fs::read(&path).expect("the file");
    assert!(raw.windows(17).any(|w| w == b"parameters\0a caf\xe9"));

    write_png(&path, &gradient(2, 2), &[]).expect("replaced");
    assert_eq!(read(&path).0, (2, 2));
    assert_eq!(scratch.names(), ["a.png"]);
}

#[test]
fn pngs_have_the_channels_of_their_pictures() {
    let scratch = Scratch::new("channels");
    let path = scratch.0.join("a.png");
    for (channels, kind) in [(1, png::ColorType::Grayscale), (3, png::ColorType::Rgb), (4, png::ColorType::Rgba)] {
        let bytes: Vec<u8> = (0..3 * 2 * channels as u8).map(|i| i * 9).collect();
        let values: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
        let made = from_nhwc(&values, 1, 2, 3, channels).expect("a picture");
        write_png(&path, &grid(&made, 1).expect("a sheet"), &[]).expect("written");
        let mut reader =
            png::Decoder::new(std::io::BufReader::new(fs::File::open(&path).unwrap())).read_info().unwrap();
        let mut got = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut got).unwrap();
        assert_eq!((info.color_type, got), (kind, bytes));
    }
    let refused = from_nhwc(&[0.0; 2], 1, 1, 1, 2).expect_err("refused").to_string();
    assert_eq!(refused, "image channels: expected 1, 3 or 4, got 2");
    let mixed = [Image::of_pixels(1, 1, 1, 0), Image::of_pixels(1, 1, 3, 0)];
    assert_eq!(grid(&mixed, 1).expect_err("refused").to_string(), "grid: expected pictures of 1 channels, got 3");
}

#[test]
fn failed_writes_leave_nothing_behind() {
    let scratch = Scratch::new("fail");
    let image = gradient(8, 8);
    let told = |path: &Path, text: &[(&str, &str)], words: [&str; 2]| {
        let message = write_png(path, &image, text).expect_err("refused").to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message:?} lacks one of {words:?}");
    };
    let path = scratch.0.join("a.png");
    told(&path, &[("", "x")], ["keyword", "\"\""]);
    told(&path, &[(&"k".repeat(80), "x")], ["1 to 79", "kkk"]);
    told(&path, &[("\u{732b}", "x")], ["Latin-1", "\u{732b}"]);
    told(&path, &[("parameters", "a\0b")], ["parameters", "NUL"]);
    told(&scratch.0.join("none/a.png"), &[], ["none/a.png", "no directory"]);
    told(Path::new("/"), &[], ["output /", "a directory"]);
    fs::create_dir(scratch.0.join("dir.png")).expect("a directory");
    told(&scratch.0.join("dir.png"), &[], ["dir.png", "a directory"]);
    // An empty picture fails in the encoder, when the temporary file is already there.
    let empty = write_png(&path, &Image::of_pixels(0, 5, 3, 0), &[]).expect_err("refused").to_string();
    assert!(empty.contains("a.png") && empty.to_lowercase().contains("width"), "{empty}");
    assert_eq!(scratch.names(), ["dir.png"]);

    // A picture that was there survives.
    write_png(&path, &image, &[]).expect("written");
    write_png(&path, &Image::of_pixels(0, 5, 3, 0), &[]).expect_err("refused");
    assert_eq!(read(&path).1, image.bytes());
    assert_eq!(scratch.names(), ["a.png", "dir.png"]);
}

#[test]
fn texts_are_read_from_every_kind_of_chunk() {
    let scratch = Scratch::new("texts");
    let path = scratch.0.join("a.png");
    let image = gradient(3, 2);
    let texts = ["plain, caf\u{e9}\nSteps: 4", "\u{732b} and \u{1f408}"];
    for text in texts {
        write_png(&path, &image, &[("Title", "no"), ("parameters", text)]).expect("written");
        assert_eq!(read_text(&path, "parameters").expect("a text"), text);
    }
    // Compressed text, and text behind the pixels, as other programs write them.
    for behind in [false, true] {
        let file = fs::File::create(&path).expect("a file");
        let mut encoder = png::Encoder::new(file, 3, 2);
        encoder.set_color(png::ColorType::Rgb);
        if !behind {
            encoder.add_ztxt_chunk("parameters".into(), texts[0].into()).expect("a chunk");
        }
        let mut writer = encoder.write_header().expect("written");
        writer.write_image_data(image.bytes()).expect("written");
        if behind {
            let chunk = png::text_metadata::ITXtChunk::new("parameters", texts[1]);
            writer.write_text_chunk(&chunk).expect("written");
        }
        writer.finish().expect("written");
        assert_eq!(read_text(&path, "parameters").expect("a text"), texts[usize::from(behind)]);
    }
    write_png(&path, &image, &[]).expect("written");
    let message = |path: &Path| read_text(path, "parameters").expect_err("no text").to_string();
    assert!(message(&path).contains("a PNG with the text `parameters`, got none"), "{}", message(&path));
    fs::write(&path, "no picture").expect("written");
    assert!(message(&path).contains("a PNG with the text `parameters`"), "{}", message(&path));
}

#[test]
fn names_are_numbered() {
    let name = |pattern, index| numbered(pattern, index).expect("a name");
    assert_eq!(name("out_%03d.png", 7), "out_007.png");
    assert_eq!(name("out_%03d.png", 1234), "out_1234.png");
    assert_eq!(name("%d/%02d-100%%.png", 5), "5/05-100%.png");
    assert_eq!(name("out.png", 0), "out.png");
    assert_eq!(name("a.b/out.png", 2), "a.b/out_2.png");
    assert_eq!(name("a.b/out", 2), "a.b/out_2");
    assert_eq!(name(".png", 1), ".png_1");
    assert_eq!(name("50%%", 0), "50%");
    for pattern in ["%", "%3", "%s.png", "%3d.png", "%0d.png", "%099d.png", "%1%", "%-3d"] {
        let text = numbered(pattern, 1).expect_err(pattern).to_string();
        assert!(text.contains(pattern) && text.contains("%03d"), "{text}");
    }
}

/// Resized to cover another size and cut, as diffusers does it.
#[test]
fn pictures_cover_other_sizes_as_diffusers_has_it() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cover.safetensors");
    let tensors = common::fixture::Fixture::open(&root);
    let channels_last = |key: &str| {
        let (values, dims) = tensors.get(key);
        let size = [dims[2], dims[3]];
        (aquatint::pipeline::swap_last_axes(&values, [1, dims[1], size[0] * size[1]]), size)
    };
    for case in ["smaller", "larger", "cut", "same", "thin", "odd"] {
        let (from, to) = (channels_last(&format!("{case}.from")), channels_last(&format!("{case}.to")));
        let made = aquatint::image::cover(&from.0, from.1, to.1, 3);
        let error = common::fixture::relative(&made, &to.0);
        println!("{case}: {error:.1e}");
        assert!(error < 1e-5, "{case}: {error:e}");
    }
}
