//! Scores by networks that the user has the weights of, and pictures in folders.

use crate::command::{evaluate, refused, text};
use crate::{folder, packed, repository};
use aquatint::image::{Image, write_png};
use aquatint_evaluation::network::{Clip, Inception, Resize, Weights};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::cell::RefCell;

/// A number in 0..1 for each place.
fn uniform(seed: u64, at: u64) -> f32 {
    let word = (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ at).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (word ^ word >> 29).wrapping_mul(0x94D0_49BB_1331_11EB).wrapping_shr(40) as f32 / (1 << 24) as f32
}

/// Writes weights that keep the size of what goes through a ReLU.
fn write_weights(name: &str, shapes: &[(String, Vec<usize>)]) {
    let value = |seed: u64, dims: &[usize], at: u64| match dims {
        [_] => uniform(seed, at) * 0.2 + 0.5,
        _ => (uniform(seed, at) - 0.5) * 2.0 * (6.0 / dims[1..].iter().product::<usize>() as f32).sqrt(),
    };
    let bytes: Vec<Vec<u8>> = shapes
        .iter()
        .enumerate()
        .map(|(seed, (_, dims))| {
            (0..dims.iter().product::<usize>() as u64)
                .flat_map(|at| value(seed as u64, dims, at).to_le_bytes())
                .collect()
        })
        .collect();
    let views = shapes.iter().zip(&bytes).map(|((name, dims), bytes)| {
        (name, TensorView::new(Dtype::F32, dims.clone(), bytes).expect("bytes of these axes"))
    });
    std::fs::write(folder().join(name), safetensors::serialize(views, None).expect("tensors")).expect("a file");
}

/// Writes AlexNet's convolutions, and weights of channels as LPIPS has them.
fn write_alex() {
    let stages = [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)];
    let trunk = stages.iter().flat_map(|&(number, inputs, outputs, kernel)| {
        let name = |kind: &str| format!("features.{number}.{kind}");
        [(name("weight"), vec![outputs, inputs, kernel, kernel]), (name("bias"), vec![outputs])]
    });
    write_weights("alex.safetensors", &trunk.collect::<Vec<_>>());
    // Weights of channels are above zero: one axis has them so.
    let bytes = [64, 192, 384, 256, 256].map(|channels| 0.1f32.to_le_bytes().repeat(channels));
    let views = bytes.iter().enumerate().map(|(slice, bytes)| {
        let dims = vec![1, bytes.len() / 4, 1, 1];
        (format!("lin{slice}.model.1.weight"), TensorView::new(Dtype::F32, dims, bytes).expect("bytes of these axes"))
    });
    std::fs::write(folder().join("lin.safetensors"), safetensors::serialize(views, None).expect("tensors"))
        .expect("a file");
}

/// Writes so many pictures of blocks, `noise` of which is other than in folders of no noise.
fn write_pictures(name: &str, count: usize, noise: f32) {
    std::fs::create_dir_all(folder().join(name)).expect("a folder");
    for i in 0..count {
        let value = |at: usize| {
            let block = (at / 3 / 48 / 6 * 48 + at / 3 % 48 / 6) * 3 + at % 3;
            let own = uniform(1000 + i as u64, block as u64);
            255.0 * (own * (1.0 - noise) + uniform(2000 + i as u64, at as u64) * noise)
        };
        let image = Image::new(48, 48, 3, (0..48 * 48 * 3).map(|at| value(at) as u8).collect());
        write_png(folder().join(name).join(format!("{i}.png")), &image, &[]).expect("a picture");
    }
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).expect("written")).expect("JSON")
}

#[test]
fn folders_are_compared_picture_by_picture() {
    write_alex();
    for (name, noise) in [("paired-a", 0.0), ("paired-b", 0.1), ("paired-c", 0.4)] {
        write_pictures(name, 12, noise);
    }
    let lpips = ["--lpips", "alex.safetensors", "--lpips-lin", "lin.safetensors"];
    let output = evaluate(
        &[&["--images", "paired-a", "paired-b", "paired-c", "paired-a", "--json", "paired.json"], &lpips[..]].concat(),
    );
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(table.starts_with("12 pictures; reference paired-a\nLPIPS 0.1, alex\n"), "{table}");
    let heading = table.lines().find(|line| line.starts_with("file")).expect("a heading");
    assert_eq!(heading.split_whitespace().collect::<Vec<_>>(), ["file", "size", "PSNR", "SSIM", "LPIPS"]);
    let json = json("paired.json");
    let figure = |file: usize, name: &str| json["files"][file]["figures"][name]["value"].as_f64();
    for name in ["psnr_median", "ssim_median"] {
        assert!(figure(1, name) > figure(2, name) && figure(0, name).is_none(), "{name}");
    }
    assert!(figure(1, "lpips_median").expect("a number") < figure(2, "lpips_median").expect("a number"));
    // The first again: nothing differs, and infinite is null.
    assert_eq!((figure(3, "lpips_mean"), figure(3, "ssim_mean"), figure(3, "psnr_mean")), (Some(0.0), Some(1.0), None));
    assert_eq!(json["files"][2]["comparisons"][1]["with"], "paired-b");
    assert_eq!(json["files"][2]["comparisons"][1]["figures"]["lpips_median"]["noise"], false);
    assert!(json["conditions"]["seeds"].is_null() && json["files"][1]["average_bits"].is_null());

    // Other names, other sizes, and networks that are not there.
    write_pictures("paired-d", 13, 0.1);
    let output = evaluate(&["--images", "paired-a", "paired-d"]);
    assert!(text(&output.stderr).contains("note: names of pictures differ between folders"), "{output:?}");
    let large = Image::of_pixels(50, 48, 3, 7);
    std::fs::create_dir_all(folder().join("large")).expect("a folder");
    (0..12).for_each(|i| write_png(folder().join(format!("large/{i}.png")), &large, &[]).expect("a picture"));
    assert_eq!(
        refused(&["--images", "paired-a", "large"]),
        "error: large/0.png: expected 48 x 48 pixels, as in paired-a, got 50 x 48 pixels"
    );
    let alone = refused(&["--images", "paired-a"]);
    assert!(alone.starts_with("error: folders: expected another to compare it with, or a network"), "{alone}");
    let lin = refused(&["--images", "paired-a", "paired-b", "--lpips", "alex.safetensors"]);
    assert!(lin.starts_with("error: alex.safetensors: expected LPIPS' weights of channels"), "{lin}");
    let other = refused(&["--images", "paired-a", "--inception", "alex.safetensors"]);
    let expected =
        "error: alex.safetensors: Conv2d_1a_3x3.conv.weight: expected shape [32, 3, 3, 3], got no such tensor";
    assert_eq!(other, expected);
    let features = refused(&["--images", "paired-a", "paired-b", "--reference-features", "paired-a"]);
    assert!(features.starts_with("error: reference-features: expected a network that makes features"), "{features}");
    let rule = evaluate(&["--images", "paired-a", "paired-b", "--resize", "clean"]);
    assert!(text(&rule.stderr).contains("--inception <FILE>"), "{}", text(&rule.stderr));
    std::fs::create_dir_all(folder().join("empty")).expect("a folder");
    let empty = refused(&["--images", "paired-a", "empty"]);
    assert_eq!(empty, "error: empty: expected a folder with PNG, JPEG, WebP or BMP pictures, got none");
    let steps = evaluate(&["--images", "paired-a", "paired-b", "--steps", "4"]);
    assert!(text(&steps.stderr).contains("cannot be used with"), "{}", text(&steps.stderr));
}

/// Names and shapes of tensors that are asked for.
#[derive(Default)]
struct Asked(RefCell<Vec<(String, Vec<usize>)>>);

impl Weights for Asked {
    fn has(&self, _: &str) -> bool {
        true
    }

    fn shaped(&self, name: &str, dims: &[usize]) -> aquatint::Result<Vec<f32>> {
        self.0.borrow_mut().push((name.to_owned(), dims.to_vec()));
        Ok(vec![0.0; dims.iter().product()])
    }
}

/// The first folder's pictures are true ones unless others are named.
#[test]
fn distances_are_from_true_pictures() {
    let asked = Asked::default();
    Inception::new(&asked, Resize::Tensorflow).expect("all tensors");
    write_weights("inception.safetensors", &asked.0.into_inner());
    write_pictures("true", 3, 0.0);
    write_pictures("few", 3, 0.3);
    write_pictures("made", 20, 0.3);
    let inception = ["--inception", "inception.safetensors", "--json", "distances.json"];
    let output = evaluate(&[&["--images", "true", "few"], &inception[..]].concat());
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("note: true: the covariance of 2048 features is singular, of rank 2"), "{errors}");
    assert!(errors.contains("note: 3 images have a singular covariance of 2048 features"), "{errors}");
    assert!(errors.contains("note: distances are from the pictures in true"), "{errors}");
    let first = json("distances.json");
    let distance = |json: &Value, file: usize| json["files"][file]["frechet"]["raw"].as_f64();
    assert!(distance(&first, 0).is_none() && first["files"][1]["figures"]["kid"].is_null());
    assert_eq!(first["conditions"]["networks"][0], "Inception of 2015-12-05, pictures resized as by TensorFlow");

    let output = evaluate(&[&["--images", "made", "true", "--reference-features", "true"], &inception[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    for heading in ["Fréchet", "KID x1000", "IS [95 %]"] {
        assert!(text(&output.stdout).contains(heading), "{}", text(&output.stdout));
    }
    let second = json("distances.json");
    // From themselves they have none, but for the rounding of roots.
    let (none, some) = (distance(&second, 1).expect("a number"), distance(&first, 1).expect("a number"));
    assert!(none.abs() < 1e-6 * some, "{none} and {some}");
    assert!(second["files"][0]["figures"]["kid"]["value"].as_f64().expect("a number") > 0.0);
    assert!(second["files"][0]["conventional"]["inception_score"][0].as_f64().expect("a number") >= 1.0);
    std::fs::remove_file(folder().join("inception.safetensors")).expect("95 MB");
}

/// A CLIP as transformers saves it, whose tokenizer is that of a small Stable Diffusion.
#[test]
fn pictures_are_compared_with_captions() {
    let config = serde_json::json!({
        "model_type": "clip", "projection_dim": 8,
        "text_config": {
            "vocab_size": 61, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 9
        },
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 24,
            "patch_size": 8
        }
    });
    std::fs::create_dir_all(folder().join("clip")).expect("a folder");
    std::fs::write(folder().join("clip/config.json"), config.to_string()).expect("a file");
    for entry in std::fs::read_dir(repository("tests/fixtures/sd/v1/tokenizer")).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder().join("clip").join(entry.file_name())).expect("a copy");
    }
    let asked = Asked::default();
    Clip::new(&serde_json::from_value(config).expect("a configuration"), &asked).expect("all tensors");
    write_weights("clip/model.safetensors", &asked.0.into_inner());
    write_pictures("told", 5, 0.0);
    let long = "a red cat on the sky a dog in the fog low a red cat on the sky";
    std::fs::write(folder().join("told.txt"), format!("a red cat\n{long}\n")).expect("a file");
    let args = ["--images", "told", "told", "--clip", "clip", "--json", "told.json"];
    let output = evaluate(&[&args[..], &["--prompts", "told.txt"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("CLIP, pictures of 24 x 24 in patches of 8\n"), "{}", text(&output.stdout));
    let json = json("told.json");
    let score = json["files"][0]["figures"]["clip_mean"]["value"].as_f64().expect("a number");
    assert!((0.0..=100.0).contains(&score), "{score}");
    assert!(text(&evaluate(&args).stderr).contains("--prompts <FILE>"));
    std::fs::write(folder().join("clip/config.json"), "{}").expect("a file");
    let wrong = refused(&[&args[..], &["--prompts", "told.txt"]].concat());
    assert!(wrong.contains("expected shape ["), "{wrong}");
}

/// A model's pictures are compared by LPIPS as those in folders are.
#[test]
fn images_of_models_are_compared_by_networks_too() {
    write_alex();
    packed("tests/fixtures/sd/v1", "f32");
    packed("tests/fixtures/sd/v1", "w8a8");
    std::fs::write(folder().join("two.txt"), "a red cat\na dog\n").expect("a file");
    let files = ["v1-f32.aqt", "v1-w8a8.aqt", "--n", "2", "--steps", "1", "--prompts", "two.txt"];
    let lpips = ["--lpips", "alex.safetensors", "--lpips-lin", "lin.safetensors", "--json", "lpips.json"];
    let output = evaluate(&[&files[..], &lpips].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(" LPIPS"), "{}", text(&output.stdout));
    let json = json("lpips.json");
    assert!(json["files"][1]["figures"]["lpips_mean"]["value"].as_f64().expect("a number") > 0.0);
    assert!(json["files"][0]["figures"]["lpips_mean"].is_null());
    assert_eq!(json["conditions"]["networks"][0], "LPIPS 0.1, alex");
}
