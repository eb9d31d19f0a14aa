//! The program as a person meets it: every refusal is one clear line and leaves nothing behind, and what is written is
//! what was asked for.

use crate::run::*;
use aquatint::sampler::Prediction;
use packer::source::settings::Overrules;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn fixture(name: &str) -> PathBuf {
    common::repository("tests/fixtures/dit/d2").join(name)
}

/// The tiny model, packed as f32 or as W4A8.
fn model(config: &str) -> &'static str {
    static F32: OnceLock<String> = OnceLock::new();
    static W4A8: OnceLock<String> = OnceLock::new();
    let (cell, vae) = if config == "f32" { (&F32, "f32") } else { (&W4A8, "w8a8") };
    cell.get_or_init(|| {
        let output = directory(&format!("model-{config}")).join("tiny.aqt");
        let options = packer::emit::Options {
            model: fixture(""),
            q_config: Some(config.into()),
            vae_q_config: Some(vae.into()),
            output: output.clone(),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        output.to_str().expect("a name in UTF-8").to_owned()
    })
}

#[test]
fn a_model_that_cannot_be_opened_is_refused() {
    let dir = directory("open");
    let sound = fs::read(model("w4a8")).expect("the packed model");
    let put = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("it is written");
    put("short.aqt", &sound[..sound.len() / 2]);
    put("stub.aqt", &sound[..40]);
    put("empty.aqt", b"");
    put("picture.aqt", &[b"\x89PNG\r\n\x1a\n".as_slice(), &[0; 100]].concat());
    let mut newer = sound.clone();
    newer[8..12].copy_from_slice(&7u32.to_le_bytes());
    put("newer.aqt", &newer);
    let mut damaged = sound.clone();
    damaged[40] ^= 4;
    put("damaged.aqt", &damaged);
    fs::create_dir(dir.join("folder")).expect("a directory");

    let cases: &[(&str, &[&str])] = &[
        ("missing.aqt", &["cannot open", "missing.aqt", "No such file"]),
        ("folder", &["model", "expected a packed .aqt file", "got the directory folder", "packer folder -o"]),
        ("short.aqt", &["short.aqt", "not a sound .aqt file", "expected", "got"]),
        ("stub.aqt", &["stub.aqt", "not a sound .aqt file", "expected", "got"]),
        ("empty.aqt", &["empty.aqt"]),
        ("damaged.aqt", &["damaged.aqt", "not a sound .aqt file", "expected", "got"]),
        ("newer.aqt", &["newer.aqt", "version", "expected 2", "got 7", "use a newer aquatint"]),
        ("picture.aqt", &["picture.aqt", "magic", "expected an .aqt file", "got"]),
    ];
    for (file, words) in cases {
        for command in ["run", "info", "verify", "bench"] {
            refuses(&dir, &[command, file], words);
        }
        refuses(&dir, &["eval", file, "--timestep", "1", "--inputs", "x", "--outputs", "y"], words);
    }
}

/// A sampler that takes another's place is named once, until a person names one; `info` tells who decided what.
#[test]
fn a_replaced_sampler_is_named() {
    let dir = directory("replaced");
    let scheduler = dir.join("scheduler.json");
    let saved =
        r#"{"_class_name": "SASolverScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}"#;
    fs::write(&scheduler, saved).expect("it is written");
    let overrules = Overrules { prediction: Some(Prediction::VPrediction), scheduler_config: Some(scheduler) };
    let options = packer::emit::Options {
        model: fixture(""),
        q_config: Some("f32".into()),
        overrules,
        output: dir.join("tiny.aqt"),
        ..Default::default()
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let run = ["run", "tiny.aqt", "-s", "2", "-p", "3", "-o", "a.png"];
    let ran = finish(&mut program(&dir, &run));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.starts_with("note: the model was saved with SASolverScheduler") && ran.err.lines().count() == 1);
    assert!(ran.err.contains("dpm++2m-sde takes its place"), "{}", ran.err);
    works(&dir, &[&run[..], &["--quiet"]].concat());
    works(&dir, &[&run[..], &["--sampler", "dpm++2m-sde"]].concat());
    let info = works(&dir, &["info", "tiny.aqt"]);
    for line in [
        "sampler dpm++2m-sde, 50 steps, guidance 4 (--scheduler-config)",
        "in place of SASolverScheduler, which is not run here",
        "predicts v_prediction (--prediction)",
    ] {
        assert!(info.contains(line), "{line:?} is not in {info}");
    }
}

#[test]
fn verify_notices_a_flipped_byte_anywhere() {
    let dir = directory("flip");
    let mut bytes = fs::read(model("w4a8")).expect("the packed model");
    let info = json(&dir, &["info", model("w4a8"), "--json"]);
    let data = bytes.len() - info["weight_bytes"].as_u64().expect("a number") as usize / 2;
    for at in (0..64).step_by(4).chain([data]) {
        bytes[at] ^= 16;
        fs::write(dir.join("flipped.aqt"), &bytes).expect("it is written");
        bytes[at] ^= 16;
        refuses(&dir, &["verify", "flipped.aqt"], &["flipped.aqt", "expected", "got"]);
        if at == data {
            // Opening reads no weights, so this flip is what only `verify` sees.
            works(&dir, &["info", "flipped.aqt"]);
        }
    }
}

#[test]
fn a_run_that_cannot_be_is_refused() {
    let dir = directory("requests");
    fs::create_dir(dir.join("folder")).expect("a directory");
    #[cfg(unix)]
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("a socket");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--class-labels", "11"], &["class label", "expected 0 to 9", "got `11`"]),
        (&["--class-labels=-1"], &["class label", "expected 0 to 9", "got `-1`"]),
        (&["-p", "umbrella"], &["class label", "or a name such as class 0", "got `umbrella`"]),
        (&["-p", "two\nlines\x1b[0m"], &["got `two\\nlines\\u{1b}[0m`"]),
        (&["--steps", "0"], &["steps", "expected", "got 0"]),
        (&["--steps", "1001"], &["steps", "1000", "got 1001"]),
        (&["--sampler", "plms2"], &["sampler", "ddim", "dpm++2m", "got", "plms2"]),
        (&["--eta", "2"], &["eta", "expected 0 to 1", "got 2"]),
        (&["--sampler", "euler", "--eta", "0.5"], &["--eta", "knows it (ddim, tcd)", "got euler"]),
        (&["--sampler", "lcm", "--timestep-spacing", "trailing"], &["--timestep-spacing", "choice", "got lcm"]),
        (&["--sampler", "ddpm", "--timestep-spacing", "quad"], &["timestep_spacing", "with ddpm", "got quad"]),
        (&["--sigmas", "karras"], &["--sigmas", "euler, heun, dpm++2m", "got ddim"]),
        (&["--variance", "fixed_large"], &["--variance", "knows it (ddpm)", "got ddim"]),
        (&["--sampler", "lms", "--clip-sample"], &["--clip-sample", "ddim, ddpm, heun, lcm", "got lms"]),
        (&["--guidance-rescale", "1.5"], &["guidance rescale", "expected 0 to 1", "got 1.5"]),
        (&["-g", "1", "--guidance-rescale", "0.5"], &["--guidance-rescale", "above 1", "no effect", "got cfg-scale 1"]),
        (&["--plain-prompt"], &["--plain-prompt", "a model that reads prompts", "got one that does not"]),
        (&["--from", "nothing.png"], &["nothing.png", "No such file"]),
        (&["--cfg-scale", "nan"], &["guidance scale", "expected a finite number", "got NaN"]),
        (&["--width", "17"], &["--width", "a multiple of 4 pixels", "got 17"]),
        (&["--height", "0"], &["--height", "a multiple of 4 pixels", "got 0"]),
        (&["--size", "18446744073709551614"], &["--height", "at most", "got 18446744073709551614"]),
        (&["--size", "18"], &["a multiple of 4 pixels", "got"]),
        (&["--n-imgs", "0"], &["--n-imgs", "expected 1 to", "got 0"]),
        (&["--n-imgs", "18446744073709551615"], &["--n-imgs", "expected 1 to", "got 18446744073709551615"]),
        (&["--batch-size", "0"], &["batch size", "expected at least 1", "got 0"]),
        (&["--threads", "0"], &["--threads", "expected 1 to", "got 0"]),
        (&["--threads", "99999999"], &["--threads", "expected 1 to", "got 99999999"]),
        (&["--isa", "mmx"], &["--isa", "portable", "got mmx"]),
        (&["--device", "cuda:x"], &["--device", "expected auto, cpu, cuda or cuda:N", "`cuda:x`"]),
        (&["-o", "nowhere/out.png"], &["nowhere/out.png", "expected a file", "no directory nowhere"]),
        (&["-o", "a_%d.JPG"], &["output a_%d.JPG", "expected a name that ends in .png", "got .JPG"]),
        (&["-o", "folder"], &["output folder", "expected a file", "got a directory"]),
        (&["-o", ""], &["output", "expected a file", "names no file"]),
        (&["-o", "out_%x.png"], &["output name", "expected %d", "out_%x.png"]),
        (&["-o", "nowhere/%d.png"], &["nowhere/0.png", "no directory nowhere"]),
        #[cfg(unix)]
        (&["-o", "socket"], &["output socket", "expected a file", "got a socket"]),
        (&["--outputs", "nowhere/out.safetensors"], &["nowhere/out.safetensors", "no directory nowhere"]),
        (&["--outputs", "folder"], &["output folder", "got a directory"]),
        #[cfg(unix)]
        (&["--outputs", "socket"], &["output socket", "got a socket"]),
        (
            &["--outputs", "./out.png"],
            &["output ./out.png", "expected a file of its own", "got another output, out.png"],
        ),
    ];
    for (args, words) in cases {
        refuses(
            &dir,
            &[&["run", model("w4a8"), "-s", "2"][..if args[0] == "--steps" { 2 } else { 4 }], args].concat(),
            words,
        );
    }
    for command in ["info", "bench"] {
        refuses(&dir, &[command, model("w4a8"), "-b", "0"], &["--batch-size", "expected 1 to", "got 0"]);
        refuses(&dir, &[command, model("w4a8"), "-b", "99999999999"], &["--batch-size", "got 99999999999"]);
    }
    refuses(&dir, &["bench", model("w4a8"), "--repeat", "0"], &["--repeat", "expected 1 to", "got 0"]);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let dir = directory("inputs");
    let zeros = vec![0.0; 3 * 4 * 8 * 8];
    let latents = |n: usize| ("latents", [n, 4, 8, 8], &zeros[..n * 256]);
    let put = |name: &str, tensors: &[(&str, &[usize], &[f32])]| save(&dir.join(name), tensors);
    let (two, three) = (latents(2), latents(3));
    let mut nan = zeros[..256].to_vec();
    nan[9] = f32::NAN;
    put("unknown", &[("noise", &[1], &[0.0])]);
    put("flat", &[("latents", &[2, 256], &zeros[..512])]);
    put("channels", &[("latents", &[1, 3, 8, 8], &zeros[..192])]);
    put("nan", &[("latents", &[1, 4, 8, 8], &nan)]);
    put("count", &[(three.0, &three.1, three.2), ("class_labels", &[2], &[1.0, 2.0])]);
    put("fraction", &[("class_labels", &[2], &[1.0, 2.5])]);
    put("large", &[("class_labels", &[2], &[1.0, 11.0])]);
    put("none", &[("class_labels", &[0], &[])]);
    put("odd", &[("latents", &[1, 4, 9, 8], &zeros[..288]), ("class_labels", &[1], &[1.0])]);
    put("unlabelled", &[(two.0, &two.1, two.2)]);
    fs::write(dir.join("noise"), b"these are no tensors").expect("it is written");
    let cases: &[(&str, &[&str])] = &[
        ("missing", &["cannot read missing", "No such file"]),
        ("noise", &["noise", "expected a safetensors file", "got"]),
        ("unknown", &["unknown: tensor", "expected latents, class_labels", "got `noise`"]),
        ("flat", &["flat: latents", "expected [n, 4, h, w]", "got [2, 256]"]),
        ("channels", &["channels: latents", "expected [n, 4, h, w]", "got [1, 3, 8, 8]"]),
        ("nan", &["nan: tensor `latents`", "expected finite numbers", "got NaN at 9"]),
        ("count", &["expected 2", "got 3"]),
        ("fraction", &["class_labels", "expected [n] whole numbers", "2.5"]),
        ("large", &["class label", "expected 0 to 9", "got 11"]),
        ("none", &["class_labels", "at least 1", "got [0]"]),
        ("odd", &["expected", "got"]),
    ];
    for (file, words) in cases {
        refuses(&dir, &["run", model("w4a8"), "-s", "2", "--inputs", file], words);
        if *file != "count" {
            // `eval` needs both tensors, and says so where `run` would have filled one in.
            let words: &[&str] =
                if matches!(*file, "fraction" | "large" | "none") { &["latents", "none"] } else { words };
            refuses(&dir, &["eval", model("w4a8"), "--timestep", "1", "--inputs", file, "--outputs", "out"], words);
        }
    }
    let eval = |file, rest: &[&str], words: &[&str]| {
        refuses(&dir, &[&["eval", model("w4a8"), "--inputs", file, "--timestep"], rest].concat(), words);
    };
    eval("count", &["1", "--outputs", "out"], &["class_labels", "expected 3, one per image", "got 2"]);
    eval("unlabelled", &["1", "--outputs", "out"], &["expected a tensor `class_labels`", "got none"]);
    eval("unlabelled", &["inf", "--outputs", "out"], &["--timestep", "expected a finite number", "got inf"]);
    eval("unlabelled", &["1", "--outputs", "nowhere/out"], &["nowhere/out", "no directory nowhere"]);
    eval("unlabelled", &["1", "--outputs", "."], &["output .", "got a directory"]);
}

/// Writing fails after everything was computed: the reason is said, and no part of a file stays.
#[cfg(unix)]
#[test]
fn a_failed_write_leaves_nothing() {
    let dir = directory("full");
    // Every write to a file fails under this limit, as on a full disk.
    let limit = r#"trap "" XFSZ; ulimit -f 0; exec "$0" "$@""#;
    for args in [["-o", "out.png"].as_slice(), &["-o", "%d.png"], &["--outputs", "out.safetensors"]] {
        let mut command = Command::new("sh");
        command.args(["-c", limit, env!("CARGO_BIN_EXE_aquatint"), "run", model("w4a8"), "-s", "2"]).args(args);
        let name = args[1].replace("%d", "0");
        refused(&dir, command.current_dir(&dir), &["cannot write", &name, "File too large"]);
    }
    // Standard output on a full device.
    if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
        refused(&dir, program(&dir, &["info"]).stdout(full), &["cannot write standard output", "No space left"]);
    } else {
        println!("skipped: no /dev/full");
    }
}

#[cfg(unix)]
#[test]
fn a_directory_without_permission_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory("locked");
    let mode = |bits| fs::set_permissions(&dir, fs::Permissions::from_mode(bits)).expect("permissions");
    mode(0o555);
    if fs::write(dir.join("probe"), "").is_ok() {
        println!("skipped: this user may write everywhere");
    } else {
        refuses(&dir, &["run", model("w4a8"), "-s", "2"], &["cannot write out.png", "Permission denied"]);
        let args = ["run", model("w4a8"), "-s", "2", "--outputs", "out.safetensors"];
        refuses(&dir, &args, &["cannot write out.safetensors", "Permission denied"]);
    }
    mode(0o755);
}

#[test]
fn bad_usage_exits_with_2() {
    let dir = directory("usage");
    let cases: &[&[&str]] = &[
        &["paint"],
        &["run", "--frobnicate"],
        &["run", "--steps", "many"],
        &["run", "--rng", "dice"],
        &["run", "--seed", "-2"],
        &["run", "--steps", "-1"],
        &["bench", "--repeat", "-1"],
        &["run", "--size", "16", "--width", "16"],
        &["eval"],
        &["verify", "--steps", "3"],
    ];
    for args in cases {
        let ran = finish(&mut program(&dir, args));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err.contains("--help") && !ran.err.contains("panicked"), "{args:?}: {}", ran.err);
        // Advice that would make a number the name of a file.
        assert!(!["-- -1", "-- -2"].iter().any(|advice| ran.err.contains(advice)), "{args:?}: {}", ran.err);
    }
    assert!(files(&dir).is_empty());
    for (args, word) in
        [(["--help"].as_slice(), "Commands:"), (&["run", "--help"], "--cfg-scale"), (&["-V"], "aquatint ")]
    {
        assert!(works(&dir, args).contains(word), "{args:?}");
    }
}

#[test]
fn a_run_writes_pictures_that_say_how_they_were_made() {
    let dir = directory("pictures");
    let info = json(&dir, &["info", model("w4a8"), "--json"]);
    let hash = info["hash"].as_str().expect("a hash");
    let out = works(&dir, &["run", model("w4a8"), "-s", "2", "--class-labels", "1,2,3", "--seed", "9", "-g", "2.5"]);
    assert!(out.starts_with("3 images, 2 steps") && out.ends_with("out.png\n"), "{out}");
    let (width, height, text) = picture(&dir.join("out.png"));
    assert_eq!((width, height), (34, 34), "two by two with a gap");
    let rest = |seed| {
        let hash = &hash[..10];
        format!("Steps: 2, Sampler: DDIM, CFG scale: 2.5, Seed: {seed}, Size: 16x16, Model hash: {hash}, Model: tiny")
    };
    assert!(text.contains(&rest(9)) && text.contains(", Images: 3, "), "{text}");

    let args = ["run", model("w4a8"), "-s", "2", "--class-labels", "1,2,3", "--seed", "9", "-g", "2.5"];
    let made = json(&dir, &[&args[..], &["-o", "out_%03d.png", "--json", "-v"]].concat());
    let names: Vec<_> = (0..3).map(|k| format!("out_{k:03}.png")).collect();
    assert_eq!(made["files"], serde_json::json!(names));
    assert_eq!(made["class_labels"], serde_json::json!([1, 2, 3]));
    assert_eq!(made["size"], serde_json::json!([16, 16]));
    assert_eq!(made["model_hash"], info["hash"]);
    assert_eq!((&made["images"], &made["seed"], &made["steps"]), (&3.into(), &9.into(), &2.into()));
    assert_eq!((&made["sampler"], &made["cfg_scale"]), (&"ddim".into(), &2.5.into()));
    for field in ["step_seconds", "decode_seconds", "seconds"] {
        assert!(made[field].as_f64().is_some_and(|s| s >= 0.0), "{field}: {made}");
    }
    for (k, name) in names.iter().enumerate() {
        let (width, height, text) = picture(&dir.join(name));
        assert_eq!((width, height), (16, 16));
        assert!(text.contains(&rest(9 + k)) && !text.contains("Images"), "{text}");
        // The text alone makes the picture again, and what is given beside it comes first.
        let again = ["run", model("w4a8"), "--from", name, "-o", "again.png", "-q"];
        works(&dir, &again);
        assert!(fs::read(dir.join("again.png")).unwrap() == fs::read(dir.join(name)).unwrap(), "{text}");
        works(&dir, &[&again[..], &["--seed", "1"]].concat());
        assert!(picture(&dir.join("again.png")).2.contains("Seed: 1,"));
        fs::remove_file(dir.join("again.png")).unwrap();
    }
    // Torch's generator has one stream for all images: the text knows the place in it. A random seed is told.
    let torch = ["run", model("w4a8"), "-s", "2", "--class-labels", "1,2,3", "--rng", "torch", "-q", "-o", "t%d.png"];
    works(&dir, &torch);
    let text = picture(&dir.join("t2.png")).2;
    assert!(text.contains("Seed: 42, ") && text.contains("RNG: CPU, Batch size: 3, Batch pos: 2"), "{text}");
    works(&dir, &["run", model("w4a8"), "--from", "t2.png", "-q", "-o", "again.png"]);
    assert!(fs::read(dir.join("again.png")).unwrap() == fs::read(dir.join("t2.png")).unwrap());
    let random =
        || json(&dir, &["run", model("w4a8"), "-s", "1", "-p", "1", "--seed", "-1", "--json", "-o", "again.png"]);
    assert!(random()["seed"] != random()["seed"]);
    for name in ["t0.png", "t1.png", "t2.png", "again.png"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    // The last seed there is, and silence.
    let last = u64::MAX.to_string();
    let quiet = ["run", model("w4a8"), "-s", "2", "--class-labels", "1,2", "-q", "-o", "q%d.png", "--seed", &last];
    assert_eq!(works(&dir, &quiet), "");
    assert!(picture(&dir.join("q0.png")).2.contains(&last));
    let all: Vec<_> = files(&dir).into_keys().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(all, ["out.png", "out_000.png", "out_001.png", "out_002.png", "q0.png", "q1.png"]);
}

#[test]
fn the_embedded_model_runs() {
    let dir = directory("embedded");
    assert_eq!(works(&dir, &["run", "-s", "1", "-g", "1", "--class-labels", "0", "-q"]), "");
    assert!(picture(&dir.join("out.png")).2.contains("Model: glyphs (embedded)"));
    works(&dir, &["verify"]);
    works(&dir, &["info"]);
}

#[test]
fn equal_requests_give_equal_bytes() {
    let dir = directory("equal");
    let make = |name: &str, change: &[&str]| {
        let (png, tensors) = (format!("{name}.png"), format!("{name}.safetensors"));
        let mut args = vec!["run", model("w4a8"), "-s", "3", "--class-labels", "5,6", "-q", "-o", &png];
        args.extend(["--outputs", &tensors]);
        args.extend(change);
        works(&dir, &args);
        (fs::read(dir.join(png)).expect("a picture"), fs::read(dir.join(tensors)).expect("tensors"))
    };
    let first = make("first", &["-t", "1"]);
    assert!(first == make("again", &["-t", "1"]), "twice the same");
    assert!(first == make("threads", &["-t", "2"]), "threads");
    assert!(first == make("batches", &["-b", "1"]), "batch size");
    let torch = make("torch", &["--rng", "torch"]);
    assert!(torch == make("torch2", &["--rng", "torch"]), "torch's generator twice");
    assert!(torch != first, "two generators");
    assert!(make("seed", &["--seed", "1"]) != first, "two seeds");
    let solver = make("sampler", &["--sampler", "dpm++2m"]);
    assert!(solver != first, "two samplers");
    assert!(make("normal", &["--sampler", "dpm++2m", "--sigmas", "normal", "--clip-sample=false"]) == solver);
    let karras = make("karras", &["--sampler", "dpm++2m", "--sigmas", "karras"]);
    assert!(karras == make("named", &["--sampler", "dpm++2m-karras"]) && karras != solver, "levels");
    assert!(karras == make("titled", &["--sampler", "DPM++ 2M Karras"]), "by its title");
    let others: [&[&str]; 6] = [
        &["--eta", "1"],
        &["--clip-sample"],
        &["--timestep-spacing", "quad"],
        &["--sampler", "iddpm"],
        &["--sampler", "ddpm", "--variance", "fixed_large", "--clip-sample=false"],
        &["--guidance-rescale", "0.7", "-g", "3"],
    ];
    let plain = make("guided", &["-g", "3"]);
    for (k, options) in others.iter().enumerate() {
        let made = make(&format!("option{k}"), options);
        assert!(made != first && made != plain, "{options:?}");
        assert!(made == make(&format!("option{k}-alone"), &[options, &["-b", "1"][..]].concat()), "{options:?} alone");
    }
}

#[test]
fn flags_of_research_scripts_mean_the_same() {
    let dir = directory("research");
    let make = |name: &str, options: &[&str]| {
        let out = format!("{name}.png");
        works(&dir, &[&["run", "--class-labels", "0,4", "-q", "-o", &out], options].concat());
        fs::read(dir.join(out)).expect("a picture")
    };
    let quad =
        make("quad", &["--sampler", "ddim", "--timestep-spacing", "quad", "--steps", "6", "--eta", "0.5", "-g", "2"]);
    for (k, options) in [
        &["--sampler", "ddim", "--skip_type", "quad", "--timesteps", "6", "--eta", "0.5", "--scale", "2"][..],
        &["--sampler", "ddim", "--skip_type", "quad", "-c", "6", "-e", "0.5", "--scale", "2"],
    ]
    .into_iter()
    .enumerate()
    {
        assert!(make(&format!("quad{k}"), options) == quad, "{options:?}");
    }
    assert!(make("uniform", &["--sampler", "ddim", "--skip_type", "uniform", "-c", "6"]) != quad);
    assert!(make("plms", &["--plms", "--steps", "6"]) == make("pndm", &["--sampler", "pndm", "--steps", "6"]));
    let both = finish(&mut program(&dir, &["run", "--plms", "--sampler", "ddim"]));
    assert!(both.code == Some(2) && both.err.contains("'--plms' cannot be used with '--sampler"), "{}", both.err);
}

#[test]
fn inputs_and_outputs_agree_with_diffusers() {
    let dir = directory("tensors");
    let loops = fixture("loop.safetensors");
    let ((dims, init), (n, labels)) = (load(&loops, "init"), load(&loops, "class_labels"));
    save(&dir.join("in"), &[("latents", &dims, &init), ("class_labels", &n, &labels)]);
    let run =
        ["run", model("f32"), "--inputs", "in", "--outputs", "out", "-s", "10", "-g", "4", "--sampler", "ddim", "-q"];
    works(&dir, &run);
    let out = dir.join("out");
    for name in ["latents", "image"] {
        let (got, want) = (load(&out, name), load(&loops, &format!("g4.ddim10.{name}")));
        assert_eq!(got.0, want.0, "{name}");
        let error = relative(&got.1, &want.1);
        assert!(error < 1e-4, "{name}: {error:e}");
    }
    assert!(load(&out, "image").1.iter().all(|v| (0.0..=1.0).contains(v)));
    assert_eq!(load(&out, "class_labels"), (n, labels));

    let io = fixture("io.safetensors");
    let ((dims, sample), (n, labels)) = (load(&io, "b2_t500.sample"), load(&io, "b2_t500.class_labels"));
    save(&dir.join("in"), &[("latents", &dims, &sample), ("class_labels", &n, &labels)]);
    works(&dir, &["eval", model("f32"), "--timestep", "500", "--inputs", "in", "--outputs", "out"]);
    let (dims, got) = load(&out, "sample");
    assert_eq!(dims, [2, 8, 8, 8]);
    let error = relative(&got, &load(&io, "b2_t500.out").1);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn the_options_of_research_code_work() {
    let dir = directory("aliases");
    let aliases = ["--n_imgs", "2", "--cls_id", "3,4", "--res", "16", "--outdir", "alias.png"];
    let made = json(&dir, &[&["run", model("w4a8"), "-s", "2", "--json"], &aliases[..]].concat());
    assert_eq!(made["class_labels"], serde_json::json!([3, 3, 4, 4]));
    assert_eq!(made["files"], serde_json::json!(["alias.png"]));
    assert_eq!(made["size"], serde_json::json!([16, 16]));
    let aliases = ["--num-inference-steps", "3", "--guidance-scale", "2", "--sampling-method", "dpm++2m"];
    let made = json(&dir, &[&["run", model("w4a8"), "--json"], &aliases[..]].concat());
    assert_eq!((&made["steps"], &made["cfg_scale"], &made["sampler"]), (&3.into(), &2.0.into(), &"dpm++2m".into()));
}

/// The tiny DiT has 2 blocks of 32 features over 16 patches. Two images and what guidance leads them away from are four samples
/// and three classes.
#[test]
fn info_tells_what_is_out_of_the_loop() {
    let dir = directory("hoisting");
    let info = json(&dir, &["info", model("f32"), "--json", "-b", "2", "-s", "20"]);
    let work = &info["hoisting"][0];
    assert_eq!((&work["network"], &work["steps"]), (&"denoiser".into(), &20.into()));
    let product = |rows: u64, inputs: u64, outputs: u64| 2 * rows * inputs * outputs;
    let (classes, rows, d) = (3, 4 * 16, 32);
    let time = product(classes, 256, d) + product(classes, d, d);
    let modulations = 2 * product(classes, d, 6 * d) + product(classes, d, 2 * d);
    let block = product(rows, d, 12 * d) + 2 * product(rows, d, 16);
    let after = product(rows, 16, d) + 2 * block + product(rows, d, 32);
    let before = after + time + modulations;
    let flops = |which: &str| work["per_step"][which]["flops"].as_u64().expect("a number");
    assert_eq!([flops("before"), flops("after")], [before, after]);
    // What depends on the timestep is done as often, but many at once.
    let run = |which: &str| work["flops_per_run"][which].as_u64().expect("a number");
    assert_eq!([run("before"), run("after")], [20 * before, 20 * before]);
    let ops = |which: &str| work["per_step"][which]["ops"].as_u64().expect("a number");
    let hoisted = work["hoisted"].as_array().expect("a list");
    let sum: u64 = hoisted.iter().map(|group| group["ops"].as_u64().expect("a number")).sum();
    assert_eq!(ops("before"), ops("after") + sum);
    let path = "transformer_blocks.*.norm1.linear";
    let modulation = hoisted.iter().find(|group| group["path"] == path).expect("modulations");
    assert_eq!((&modulation["once_per"], &modulation["ops"]), (&"timestep".into(), &2.into()));

    let text = works(&dir, &["info", model("f32"), "-b", "2", "-s", "20"]);
    let (after, before) = (ops("after"), ops("before"));
    for line in [
        format!("denoiser in each of 20 steps, batch 2: {after} of {before} ops, 3.604 MFLOP of 3.746 MFLOP"),
        "once per timestep, many at once: ".into(),
        "once per prompt: 1 ops, 0.000 MFLOP: ".into(),
    ] {
        assert!(text.contains(&line), "{line:?} is not in {text}");
    }
}

#[test]
fn reports_are_json() {
    let dir = directory("reports");
    let file = model("w4a8");
    let info = json(&dir, &["info", file, "--json", "-b", "2", "-s", "5"]);
    let bytes = fs::metadata(file).expect("the model").len();
    assert_eq!(info["file_bytes"], bytes);
    assert_eq!((&info["memory"]["batch"], &info["memory"]["steps"]), (&2.into(), &5.into()));
    let memory = |field: &str| info["memory"][field].as_u64().expect("a number");
    assert_eq!(memory("peak_arena"), memory("denoiser_arena").max(memory("decoder_arena")));
    let sums: u64 = info["codecs"].as_object().expect("codecs").values().map(|c| c["bytes"].as_u64().unwrap()).sum();
    let weights = info["weight_bytes"].as_u64().expect("a number");
    assert!(0 < sums && sums <= weights && weights < bytes, "{sums} {weights} {bytes}");
    let verify = json(&dir, &["verify", file, "--json"]);
    assert_eq!(verify, serde_json::json!({ "sound": true, "hash": info["hash"], "bytes": bytes }));
    let bench = json(&dir, &["bench", file, "--json", "--repeat", "2"]);
    for part in ["denoiser", "decoder"] {
        let times = &bench[part];
        assert!(times["best"].as_f64() <= times["median"].as_f64() && times["best"].as_f64() > Some(0.0), "{times}");
        assert!(times["ops"].as_object().is_some_and(|ops| !ops.is_empty()), "{times}");
    }
    let bench = json(&dir, &["bench", file, "--json", "--repeat", "1", "--no-decode"]);
    assert!(bench["decoder"].is_null() && bench["denoiser"]["phases"].is_null());
    // Of other sizes, what is measured is other work.
    let [height, width] = [0, 1].map(|axis| bench["pixels"][axis].as_u64().expect("pixels"));
    let work = |bench: &serde_json::Value| bench["denoiser"]["work"]["linear (codes)"]["operations"].as_f64();
    let (size, less) = ((2 * width).to_string(), ["--repeat", "1", "--no-decode", "--no-step"]);
    let wide = json(&dir, &[&["bench", file, "--json", "-W", &size], &less[..]].concat());
    assert_eq!(wide["pixels"], serde_json::json!([height, 2 * width]));
    assert_eq!(work(&wide), work(&bench).map(|operations| 2.0 * operations));
    assert!(bench["step_seconds"].as_f64() > Some(0.0) && wide["step_seconds"].is_null(), "{bench} {wide}");
    refuses(&dir, &["bench", file, "--size", "47"], &["height", "expected a multiple of", "got 47"]);
}

/// Several files are timed by turns, and compared with the first.
#[test]
fn bench_compares_files() {
    let dir = directory("bench-files");
    let file = model("w4a8");
    let bench = json(&dir, &["bench", file, file, model("f32"), "--json", "--repeat", "9"]);
    let files = bench["files"].as_array().expect("files");
    assert_eq!(files.len(), 3);
    for of in files {
        let ratio = |name: &str| of["ratio"][name].as_f64().expect("a number");
        assert!(0.0 < ratio("low") && ratio("low") <= ratio("median") && ratio("median") <= ratio("high"), "{of}");
        assert_eq!(of["calls"].as_array().expect("calls").len(), 9);
        assert!(of["best"].as_f64() <= of["median"].as_f64(), "{of}");
        let ops = of["ops"].as_object().expect("ops");
        assert!(ops.values().all(|op| op.as_array().unwrap().len() == 9), "{of}");
    }
    assert_eq!(files[0]["ratio"], serde_json::json!({ "median": 1.0, "low": 1.0, "high": 1.0 }));
    assert!(files[1]["ops"]["linear (codes)"].is_array() && files[2]["ops"]["linear (codes)"].is_null(), "{bench}");
    let told = works(&dir, &["bench", file, file, "--repeat", "3"]);
    assert!(told.contains("to the first") && told.matches(file).count() == 2, "{told}");
    refuses(&dir, &["bench", file, "missing.aqt"], &["missing.aqt"]);
    refuses(&dir, &["bench", file, file, "--no-decode"], &["--no-decode", "expected one model with it"]);
}

/// Each phase of a file is timed; a call of a run takes their mean, by how many calls each holds.
#[test]
fn bench_times_every_phase() {
    let dir = directory("bench-phases");
    let phased = "default = \"w4a8\"\n[[phases]]\nFROM\ndefault = \"f16\"\n";
    for (from, starts, shares) in
        [("from = 0.75", [0.0, 0.75], [0.75, 0.25]), ("from_timestep = 500", [0.0, 500.0], [0.5, 0.5])]
    {
        let config = dir.join("phases.toml");
        fs::write(&config, phased.replace("FROM", from)).expect("a configuration");
        let file = dir.join("m.aqt");
        let options = packer::emit::Options {
            model: fixture(""),
            q_config: Some(config.to_str().expect("a name in UTF-8").to_owned()),
            output: file.clone(),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
        let bench = json(&dir, &["bench", file.to_str().unwrap(), "--json", "--repeat", "2", "--no-decode"]);
        let phases = bench["denoiser"]["phases"].as_array().expect("phases");
        let number = |of: &serde_json::Value, name: &str| of[name].as_f64().expect("a number");
        let mut mean = 0.0;
        for ((phase, from), share) in phases.iter().zip(starts).zip(shares) {
            assert_eq!(number(phase, "from"), from);
            assert!((number(phase, "share") - share).abs() < 0.05, "{phase}");
            mean += number(phase, "share") * number(phase, "median");
        }
        assert_eq!(phases.len(), 2);
        assert!((mean / number(&bench["denoiser"], "median") - 1.0).abs() < 1e-9, "{bench}");
        // Integer layers in the first phase, none in the second.
        let codes = |phase: &serde_json::Value| phase["ops"].as_object().unwrap().contains_key("linear (codes)");
        assert!(codes(&phases[0]) && !codes(&phases[1]), "{bench}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = directory("pipe");
    let file = model("w4a8");
    for args in [["info", file].as_slice(), &["info", file, "--json"], &["verify", file], &["run", file, "-s", "2"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let ran = finish(program(&dir, args).stdout(writer));
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
    }
    assert!(dir.join("out.png").is_file());
}

/// Peak memory of the program in bytes. Its standard output is a full pipe, so that it waits with its last line, with
/// all work done (`done` tells), while the system's account of it is read.
#[cfg(target_os = "linux")]
fn peak(dir: &Path, args: &[&str], done: &dyn Fn() -> bool) -> u64 {
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    let output = writer.try_clone().expect("a second end");
    // More than fits in a pipe of the usual size: the thread stays in its write until the pipe is drained.
    let filler = std::thread::spawn(move || writer.write_all(&[b' '; 1 << 17]).expect("the pipe is read"));
    std::thread::sleep(Duration::from_millis(50));
    let mut child = program(dir, args).stdout(output).spawn().expect("the program starts");
    let begin = Instant::now();
    while !done() || begin.elapsed() < Duration::from_millis(200) {
        assert!(begin.elapsed() < Duration::from_secs(30), "{args:?} does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("the child's account");
    let drain = std::thread::spawn(move || reader.read_to_end(&mut Vec::new()).expect("the pipe is read"));
    filler.join().expect("the pipe was full");
    assert!(child.wait().expect("the child ends").success());
    drain.join().expect("the pipe is closed");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a running child's peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// The promise of `info`: weights and arena are all the memory there is, but for a constant.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_what_info_says() {
    /// Stacks, scratch of one thread, the allocator's slack, code that `--version` does not touch, and the rest of a
    /// large page.
    const CONSTANT: u64 = 6 << 20;
    let dir = directory("memory");
    let file = model("w4a8");
    let info = json(&dir, &["info", file, "--json", "-b", "1280", "-s", "2"]);
    let weights = info["weight_bytes"].as_u64().expect("a number");
    let arena = info["memory"]["peak_arena"].as_u64().expect("a number");
    assert!(arena > 2 * CONSTANT, "an arena of {arena} is too small to tell");
    let base = peak(&dir, &["--version"], &|| true);
    let run =
        ["run", file, "-t", "1", "-s", "2", "-b", "1280", "--n-imgs", "128", "--class-labels", "0,1,2,3,4,5,6,7,8,9"];
    let used = peak(&dir, &run, &|| dir.join("out.png").is_file()).saturating_sub(base);
    println!("{used} bytes used; weights {weights}, arena {arena}, base {base}");
    assert!(used <= weights + arena + arena / 10 + CONSTANT, "{used} bytes used; weights {weights}, arena {arena}");
}
