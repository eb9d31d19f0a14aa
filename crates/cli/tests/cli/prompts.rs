//! The program with models that read prompts: texts, pictures to begin with, features instead of texts, and what is
//! refused.

use crate::run::*;
use std::fs;
use std::sync::OnceLock;

/// The tiny XL with its refiner, packed once.
fn model() -> &'static str {
    static MODEL: OnceLock<String> = OnceLock::new();
    MODEL.get_or_init(|| {
        let fixture = |name: &str| common::repository("tests/fixtures/sd").join(name);
        let output = directory("prompts-model").join("xl.aqt");
        let options = packer::emit::Options {
            model: fixture("xl"),
            refiner: Some(fixture("refiner")),
            q_config: Some("w8a8".into()),
            output: output.clone(),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        output.to_str().expect("a name in UTF-8").to_owned()
    })
}

#[test]
fn prompts_make_pictures_that_say_so() {
    let dir = &directory("prompts-run");
    let base = ["run", model(), "-p", "a red cat", "-n", "fog", "--steps", "3", "-o", "a.png"];
    let told = json(dir, &[&base[..], &["--json", "--n-imgs", "2", "--guidance-rescale", "0.7"]].concat());
    assert_eq!((&told["images"], &told["prompts"]), (&2.into(), &serde_json::json!(["a red cat", "a red cat"])));
    let (width, height, text) = picture(&dir.join("a.png"));
    assert_eq!((width, height), (64 + 2, 32));
    assert!(text.starts_with("a red cat\nNegative prompt: fog\n"), "{text}");

    // Two prompts, one picture each; another size; more tokens than fit at once.
    let long = "a red cat on the sky, a dog in the (fog:1.4) BREAK low";
    let args = ["run", model(), "-p", long, "-p", "a dog", "-W", "48", "-H", "16", "--steps", "2", "-o", "b_%d.png"];
    works(dir, &args);
    assert_eq!(picture(&dir.join("b_0.png")).0, 48);
    assert!(picture(&dir.join("b_1.png")).2.starts_with("a dog\n"));
    let cut = finish(&mut program(dir, &[&args[..], &["--plain-prompt"]].concat()));
    assert!(cut.code == Some(0) && cut.err.starts_with("warning: the prompt is longer"), "{}", cut.err);
}

/// On a CUDA device a run takes as much as its largest program, which need not be there to be planned for.
#[test]
fn memory_of_a_device_is_that_of_the_largest_program() {
    let dir = &directory("prompts-memory");
    let told = |device: &str| json(dir, &["info", model(), "--device", device, "--json"]);
    let (cpu, cuda) = (told("cpu"), told("cuda"));
    assert!(cpu["memory"]["device_bytes"].is_null() && cpu["memory"]["device_program"].is_null());
    let memory = |field: &str| cuda["memory"][field].as_u64().expect("a number");
    assert_eq!(cuda["memory"]["device_program"], "denoiser");
    // Its arena and its weights, which are not all: there are two text encoders, a refiner and an autoencoder.
    let all = cuda["weight_bytes"].as_u64().expect("a number");
    assert!(memory("denoiser_arena") < memory("device_bytes") && memory("device_bytes") < all, "{cuda:#}");
    let text = works(dir, &["info", model(), "--device", "cuda"]);
    let line = text.lines().find(|line| line.starts_with("memory of the CUDA device: ")).expect("a line");
    assert!(line.ends_with(" of it weights, for the denoiser"), "{line}");
}

#[test]
fn features_take_the_place_of_texts() {
    let dir = &directory("prompts-features");
    let made = |args: &[&str]| {
        works(dir, &[&["run", model(), "--steps", "2", "--outputs", "made", "-o", "a.png"], args].concat());
        load(&dir.join("made"), "image").1
    };
    let want = made(&["-p", "a cat, the sky", "-n", "fog"]);
    let names = ["prompt_embeds", "negative_prompt_embeds", "pooled", "negative_pooled"];
    let tensors = names.map(|name| load(&dir.join("made"), name));
    assert_eq!((&tensors[0].0, &tensors[2].0), (&vec![1, 11, 44], &vec![1, 10]));
    let named: Vec<_> = names.iter().zip(&tensors).map(|(n, (dims, values))| (*n, &dims[..], &values[..])).collect();
    save(&dir.join("features"), &named);
    assert_eq!(made(&["--inputs", "features"]), want);
    // The first encoder's features and the second's apart.
    let split = |values: &[f32], from: usize, to: usize| -> Vec<f32> {
        values.chunks_exact(44).flat_map(|row| row[from..to].to_vec()).collect()
    };
    let parts: Vec<_> = [0, 1].map(|i| [split(&tensors[i].1, 0, 18), split(&tensors[i].1, 18, 44)]).into();
    save(
        &dir.join("features"),
        &[
            ("prompt_embeds", &[1, 11, 18], &parts[0][0]),
            ("prompt_embeds_2", &[1, 11, 26], &parts[0][1]),
            ("negative_prompt_embeds", &[1, 11, 18], &parts[1][0]),
            ("negative_prompt_embeds_2", &[1, 11, 26], &parts[1][1]),
            ("pooled", &[1, 10], &tensors[2].1),
            ("negative_pooled", &[1, 10], &tensors[3].1),
        ],
    );
    assert_eq!(made(&["--inputs", "features"]), want);
    let latents = vec![0.5; 4 * 8 * 8];
    let one = |rows: &[usize]| vec![0.5; rows.iter().product()];
    save(
        &dir.join("one"),
        &[
            ("latents", &[1, 4, 8, 8], &latents),
            ("prompt_embeds", &[1, 11, 44], &one(&[11, 44])),
            ("pooled", &[1, 10], &one(&[10])),
        ],
    );
    works(dir, &["eval", model(), "--inputs", "one", "--timestep", "300", "--outputs", "out"]);
    assert_eq!(load(&dir.join("out"), "sample").0, [1, 4, 8, 8]);
    save(&dir.join("one"), &[("latents", &[1, 4, 8, 8], &latents)]);
    let eval = ["eval", model(), "--inputs", "one", "--timestep", "300", "--outputs", "out"];
    refuses(dir, &eval, &["a tensor `prompt_embeds`"]);
}

#[test]
fn pictures_begin_runs() {
    let dir = &directory("prompts-pictures");
    let base = ["run", model(), "-p", "a cat", "--steps", "4", "-o"];
    works(dir, &[&base[..], &["first.png"]].concat());
    let from = |more: &[&str], out: &str| {
        works(dir, &[&base[..], &[out, "--init-image", "first.png"], more].concat());
        fs::read(dir.join(out)).unwrap()
    };
    let half = from(&["--strength", "0.5"], "half.png");
    assert_eq!(picture(&dir.join("half.png")).0, 32);
    assert!(from(&["--strength", "0.9"], "most.png") != half);
    from(&["--strength", "0.9", "--mask", "first.png"], "painted.png");
    from(&["-W", "64", "-H", "48"], "larger.png");
    assert_eq!(picture(&dir.join("larger.png")).0, 64);
    let bounded = from(&["--max-memory", "1M", "--vae-tile", "4", "--strength", "0.5"], "tiled.png");
    assert!(bounded != half);
}

/// A picture file of the fixtures.
fn fixture(name: &str) -> String {
    let root = common::repository("tests/fixtures/pictures").join(name);
    root.to_str().expect("a path of UTF-8").to_owned()
}

/// A model whose autoencoder has 4 pixels per latent makes every multiple of 4 pixels.
#[test]
fn sizes_are_those_of_pictures_down_to_whole_latents() {
    let dir = &directory("prompts-sizes");
    let base = ["run", model(), "-p", "a cat", "--steps", "4", "--refiner-start", "1", "-o", "a.png"];
    let size = |more: &[&str]| {
        works(dir, &[&base[..], more].concat());
        let (width, height, _) = picture(&dir.join("a.png"));
        (width, height)
    };
    assert_eq!(size(&["-W", "20", "-H", "36"]), (20, 36));
    assert_eq!(size(&["--init-image", &fixture("noise.png")]), (28, 16));
    // 10 x 7 pixels on their side, and their twin.
    assert_eq!(size(&["--init-image", &fixture("turned-6.png")]), (4, 8));
    assert_eq!(size(&["--init-image", &fixture("turned-1.png")]), (8, 4));
    for kind in ["turned.webp", "rgb.bmp", "turned.jpg"] {
        size(&["--init-image", &fixture(kind), "--mask", &fixture("noise-strokes.png"), "-W", "16", "-H", "16"]);
    }
}

#[test]
fn pictures_of_other_proportions_are_brought_to_size() {
    let dir = &directory("prompts-resize");
    let made = |mode: &[&str]| {
        let noise = fixture("noise.png");
        let base = ["run", model(), "-p", "a cat", "--refiner-start", "1", "--strength", "0.3", "-W", "16", "-H", "32"];
        works(dir, &[&base[..], &["--init-image", &noise, "-o", "a.png", "--outputs", "a"], mode].concat());
        load(&dir.join("a"), "image").1
    };
    let [stretch, crop, pad] = ["stretch", "crop", "pad"].map(|mode| made(&["--resize-mode", mode]));
    assert!(stretch == made(&[]) && stretch != crop && crop != pad && pad != stretch);
    // diffusers' names.
    assert!(made(&["--resize-mode", "default"]) == stretch && made(&["--resize-mode", "fill"]) == pad);
}

#[test]
fn pixels_of_one_and_four_channels_become_their_pngs() {
    let dir = &directory("prompts-channels");
    for (name, channels, kind) in [("grey", 1, png::ColorType::Grayscale), ("rgba", 4, png::ColorType::Rgba)] {
        let options = packer::emit::Options {
            model: common::repository("tests/fixtures/unet").join(name),
            output: dir.join("model.aqt"),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        works(dir, &["run", "model.aqt", "--n-imgs", "3", "--steps", "2", "-o", "a.png", "--outputs", "a"]);
        assert_eq!(load(&dir.join("a"), "image").0, [3, channels, 8, 8]);
        let file = std::io::BufReader::new(fs::File::open(dir.join("a.png")).unwrap());
        assert_eq!(png::Decoder::new(file).read_info().unwrap().info().color_type, kind);
        // A picture of as many channels to begin with.
        let init = fixture("rgba.png");
        works(dir, &["run", "model.aqt", "--init-image", &init, "-W", "8", "-H", "8", "--steps", "3", "-o", "b.png"]);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = &directory("prompts-refused");
    fs::write(dir.join("text.png"), "no picture").unwrap();
    let refused = |args: &[&str], words: &[&str]| {
        refuses(dir, &[&["run", model(), "-o", "a.png", "--steps", "2"], args].concat(), words);
    };
    refused(&[], &["--prompt", "what the images show"]);
    refused(&["-p", "cat", "--class-labels", "1"], &["--class-labels", "this model reads prompts"]);
    refused(&["-p", "cat", "-p", "dog", "-p", "fog", "-n", "a", "-n", "b"], &["negative prompts", "1, or 3"]);
    refused(&["-p", "cat", "-W", "42"], &["--width", "a multiple of 4 pixels"]);
    refused(&["-p", "cat", "--init-image", "text.png"], &["text.png", "a PNG, JPEG, WebP or BMP picture"]);
    refused(&["-p", "cat", "--init-image", "none.png"], &["none.png"]);
    refused(&["-p", "cat", "--refiner-start", "0"], &["--refiner-start", "above 0 to 1"]);
    refused(&["-p", "cat", "--max-memory", "1k"], &["memory", "at least"]);
    refused(&["-p", "cat", "--vae-tile", "0"], &["tile", "at least 1"]);
    refused(&["-p", &format!("(cat:{})", "9".repeat(60))], &["weight in the prompt"]);
    refuses(dir, &["run", "-p", "A", "-n", "B", "-o", "a.png"], &["--negative", "a model that reads prompts"]);
    refuses(dir, &["run", "-p", "A", "--refiner-start", "0.5", "-o", "a.png"], &["a file that holds a refiner"]);
    for args in [&["--mask", "a.png"][..], &["--strength", "0.5"], &["--resize-mode", "pad"], &["--max-memory", "x"]] {
        let ran = finish(&mut program(dir, &[&["run", model(), "-p", "cat", "-o", "a.png"], args].concat()));
        assert_eq!(ran.code, Some(2), "{args:?}");
    }
}

/// Options that change nothing are refused, with the reason.
#[test]
fn options_without_an_effect_are_refused() {
    let dir = &directory("prompts-idle");
    let base = ["run", model(), "-p", "a cat", "--steps", "2", "-q", "-o", "a.png"];
    let refused = |args: &[&str], words: &[&str]| refuses(dir, &[&base[..], args].concat(), words);
    refused(&["-g", "1", "-n", "fog"], &["--negative", "a cfg-scale above 1, or it has no effect", "got cfg-scale 1"]);
    refused(&["-g", "1", "-n", ""], &["--negative", "no effect"]);
    refused(&["-g", "0.5", "--guidance-rescale", "0.7"], &["--guidance-rescale", "no effect", "got cfg-scale 0.5"]);
    assert!(files(dir).is_empty());

    // Given latents leave nothing to a sampler without noise, and given features nothing to prompts.
    works(dir, &[&base[..], &["--outputs", "made"]].concat());
    let names = ["latents", "prompt_embeds", "negative_prompt_embeds", "pooled", "negative_pooled"];
    let tensors = names.map(|name| load(&dir.join("made"), name));
    let named: Vec<_> = names.iter().zip(&tensors).map(|(n, (dims, values))| (*n, &dims[..], &values[..])).collect();
    save(&dir.join("given"), &named);
    let given = ["run", model(), "--inputs", "given", "--steps", "2", "--sampler", "euler", "-q", "-o", "b.png"];
    works(dir, &given);
    let refused = |args: &[&str], words: &[&str]| refuses(dir, &[&given[..], args].concat(), words);
    refused(&["--seed", "3"], &["--seed", "a request that draws noise", "got one whose latents are given"]);
    refused(&["--rng", "torch"], &["--rng", "no effect"]);
    refused(&["-p", "a dog"], &["--prompt", "none beside", "--inputs"]);
    refused(&["-n", "a dog"], &["--negative", "none beside"]);
    refused(&["--n-imgs", "2"], &["--n-imgs", "none beside"]);
    let with_noise = ["run", model(), "--inputs", "given", "--steps", "2", "--sampler", "euler-a", "--seed", "3"];
    works(dir, &[&with_noise[..], &["-q", "-o", "c.png"]].concat());
    // The picture of tensors is made again with them, and not without.
    works(dir, &["run", model(), "--from", "b.png", "--inputs", "given", "-q", "-o", "c.png"]);
    let [b, c] = ["b.png", "c.png"].map(|name| fs::read(dir.join(name)).expect("a picture"));
    assert!(b == c);
    refuses(dir, &["run", model(), "--from", "b.png", "-o", "c.png"], &["--inputs", "the tensors", "got none"]);
}

/// What other programs act on is told once, and refused on request.
#[test]
fn syntax_of_other_programs_is_told() {
    let dir = &directory("prompts-foreign");
    let base = ["run", model(), "--steps", "2", "-o", "a.png"];
    let prompts = ["-p", "a cat <lora:x:1>", "-p", "a [red:low:0.5] dog <lora:x:1>", "-n", "a AND b"];
    let ran = finish(&mut program(dir, &[&base[..], &prompts].concat()));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(ran.code == Some(0) && lines.len() == 3, "{}", ran.err);
    for (line, part) in lines.iter().zip(["<lora:x:1>", "[red:low:0.5]", "AND"]) {
        assert!(line.starts_with(&format!("warning: \"{part}\" is read as")), "{line}");
    }
    let strict = [&base[..], &prompts, &["--strict"]].concat();
    refuses(dir, &strict, &["prompt", "<lora:x:1>"]);
    works(dir, &[&base[..], &["-p", "a (red:1.2) [low] cat", "--strict"]].concat());
}

/// A run that began with an image says so, and is made again with that image.
#[test]
fn pictures_of_pictures_are_made_again() {
    let dir = &directory("prompts-again");
    works(dir, &["run", model(), "-p", "a cat", "--steps", "2", "-q", "-o", "init.png"]);
    let run =
        ["run", model(), "-p", "fog, \"x\"", "-n", "low\nsky", "--steps", "4", "--strength", "0.6", "--init-image"];
    let more =
        ["init.png", "--sampler", "ddim", "--eta", "0.5", "--rng", "torch", "-q", "-o", "b_%d.png", "--n-imgs", "2"];
    works(dir, &[&run[..], &more].concat());
    let text = picture(&dir.join("b_1.png")).2;
    for part in [
        "Negative prompt: low\nsky\n",
        "Seed: 42, ",
        "Batch pos: 1, ",
        "Denoising strength: 0.6, ",
        "Eta: 0.5, ",
        "RNG: CPU",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    works(dir, &["run", model(), "--from", "b_1.png", "--init-image", "init.png", "-q", "-o", "c.png"]);
    let [b, c] = ["b_1.png", "c.png"].map(|name| fs::read(dir.join(name)).expect("a picture"));
    assert!(b == c);
    refuses(dir, &["run", model(), "--from", "b_1.png", "-o", "c.png"], &["--init-image", "began with", "got none"]);
    // Another image is told, and so is a mask that is missing.
    let another = ["run", model(), "--from", "b_1.png", "--init-image", "b_0.png", "-o", "d.png"];
    let ran = finish(&mut program(dir, &another));
    assert!(ran.code == Some(0) && ran.err.contains("another image than the picture was made of"), "{}", ran.err);
    works(
        dir,
        &[
            "run",
            model(),
            "-p",
            "a",
            "--steps",
            "4",
            "--init-image",
            "init.png",
            "--mask",
            "b_0.png",
            "-q",
            "-o",
            "e.png",
        ],
    );
    let masked = ["run", model(), "--from", "e.png", "--init-image", "init.png", "-q", "-o", "f.png"];
    refuses(dir, &masked, &["--mask", "the mask that the picture was made with", "got none"]);
    works(dir, &[&masked[..], &["--mask", "b_0.png"]].concat());
    let [e, f] = ["e.png", "f.png"].map(|name| fs::read(dir.join(name)).expect("a picture"));
    assert!(e == f);
    // Never over what it reads.
    let over = ["run", model(), "--from", "b_1.png", "--init-image", "init.png", "-q", "-o", "b_1.png"];
    refuses(dir, &over, &["output b_1.png", "a file that is not an input"]);
}

/// Features that `encode` wrote make the pictures of the prompts, to the bit, with the file that made them and with one
/// without text encoders, which says where they come from.
#[test]
fn encoded_prompts_make_the_pictures_of_prompts() {
    let dir = &directory("prompts-encode");
    let without = dir.join("without.aqt");
    let fixture = |name: &str| common::repository("tests/fixtures/sd").join(name);
    let options = packer::emit::Options {
        model: fixture("xl"),
        refiner: Some(fixture("refiner")),
        q_config: Some("w8a8".into()),
        donors: packer::source::donors::Donors { without_text: true, ..Default::default() },
        output: without,
        ..Default::default()
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let long = "a red cat on the sky, a dog in the (fog:1.4) BREAK low";
    for prompts in [&["-p", "a cat, the sky", "-n", "fog"][..], &["-p", "a dog"], &["-p", long, "-p", "a dog"]] {
        let told = works(dir, &[&["encode", model(), "-o", "embeds"], prompts].concat());
        assert!(told.contains("embeds: ") && told.contains("prompt_mask ["), "{told}");
        let made = |file: &str, args: &[&str]| {
            works(dir, &[&["run", file, "--steps", "2", "--outputs", "made", "-o", "a.png"], args].concat());
            (load(&dir.join("made"), "latents").1, load(&dir.join("made"), "image").1)
        };
        let want = made(model(), prompts);
        assert!(made(model(), &["--inputs", "embeds"]) == want, "{prompts:?}");
        assert!(made("without.aqt", &["--inputs", "embeds"]) == want, "{prompts:?}");
    }
    let words = ["--prompt", "--inputs FILE", "`aquatint encode", "a file packed without it"];
    refuses(dir, &["run", "without.aqt", "-p", "a cat", "-o", "b.png"], &words);
    refuses(dir, &["encode", "without.aqt", "-p", "a cat", "-o", "b"], &words);
    refuses(dir, &["encode", model(), "-o", "b"], &["--prompt", "what the images show"]);
    refuses(dir, &["encode", model(), "-p", "a <lora:x:1>", "--strict", "-o", "b"], &["<lora:x:1>"]);
    assert!(!dir.join("b").exists() && !dir.join("b.png").exists());
    let info = works(dir, &["info", "without.aqt"]);
    assert!(info.contains("given as features (--inputs)"), "{info}");
}
