//! `sample` and `merge`: many images in parts, which are those of one run, whoever makes which.

use crate::run::*;
use aquatint::raw::backend::cpu::Tier;
use aquatint::samples::Merge;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Two steps of eleven images of three classes.
const JOB: [&str; 9] = ["sample", "l.aqt", "--n-imgs", "11", "--class-labels", "3,7,25", "-s", "2", "--seed"];

/// An empty directory with the letter model.
fn with_letters(name: &str) -> PathBuf {
    let dir = directory(name);
    fs::copy(common::repository("models/glyphs-w4a8.aqt"), dir.join("l.aqt")).expect("room");
    dir
}

/// The job with seed 5 and more arguments.
fn job<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&JOB[..], &["5"], more].concat()
}

fn shard(folder: &Path, k: usize, n: usize) -> PathBuf {
    folder.join(format!("shard-{k:05}-of-{n:05}.safetensors"))
}

#[test]
fn neither_shards_nor_batches_change_a_byte() {
    let dir = &with_letters("sample-bytes");
    for rng in ["fast", "torch"] {
        let make = |more: &[&str]| works(dir, &job(&[&["--rng", rng, "--keep", "both", "-q"], more].concat()));
        make(&["-o", &format!("{rng}-1")]);
        let whole = fs::read(shard(&dir.join(format!("{rng}-1")), 0, 1)).unwrap();
        // More shards than images, too: some are empty.
        for (n, batch) in [(3, "1"), (4, "3"), (12, "8")] {
            let folder = format!("{rng}-{n}");
            for k in (0..n).rev() {
                make(&["--shard", &format!("{k}/{n}"), "-b", batch, "-o", &folder]);
            }
            let merged = format!("{folder}.safetensors");
            let told = json(dir, &["merge", &folder, "-o", &merged, "--json"]);
            assert_eq!((&told["images"], &told["shards"]), (&11.into(), &n.into()));
            assert!(fs::read(dir.join(merged)).unwrap() == whole, "{rng}, {n} shards");
            let single = json(dir, &["merge", &format!("{rng}-1"), "-o", "again.safetensors", "--json"]);
            assert_eq!((&told["mean"], &told["covariance"]), (&single["mean"], &single["covariance"]));
            assert_eq!((&told["job"], &told["settings"]), (&single["job"], &single["settings"]));
        }
    }
    let [fast, torch] = ["fast-1", "torch-1"].map(|folder| load(&shard(&dir.join(folder), 0, 1), "latents").1);
    assert!(fast != torch, "--rng does nothing");
}

/// Images of a job are those of runs alone, and their pictures say how to make them again.
#[test]
fn images_are_those_of_single_runs() {
    let dir = &with_letters("sample-single");
    for rng in ["fast", "torch"] {
        works(dir, &job(&["--rng", rng, "-q", "-o", rng]));
        works(dir, &["merge", rng, "-q", "-o", &format!("{rng}-pictures")]);
        for (i, (class, seed)) in [("3", "5"), ("7", "6"), ("25", "7"), ("3", "8")].into_iter().enumerate() {
            let one = format!("{rng}-{i}.png");
            let class = ["--class-labels", class, "--seed", seed, "--rng", rng, "-o", &one];
            works(dir, &[&["run", "l.aqt", "-s", "2", "-q"], &class[..]].concat());
            let made = dir.join(format!("{rng}-pictures/{i:06}.png"));
            assert!(fs::read(&made).unwrap() == fs::read(dir.join(one)).unwrap(), "{rng}, image {i}");
        }
    }
    // All classes in turn, where nobody names one.
    works(dir, &["sample", "l.aqt", "--n-imgs", "28", "-s", "1", "-q", "-o", "all"]);
    works(dir, &["merge", "all", "-q", "-o", "all-pictures"]);
    let shown = |i: usize| picture(&dir.join(format!("all-pictures/{i:06}.png"))).2;
    for (i, letter) in [(0, "A"), (25, "Z"), (26, "A"), (27, "B")] {
        assert!(shown(i).starts_with(&format!("{letter}\n")), "{i}: {}", shown(i));
    }
}

/// The tiny Stable Diffusion, packed.
fn v1(dir: &Path) {
    let options = packer::emit::Options {
        model: common::repository("tests/fixtures/sd/v1"),
        q_config: Some("w8a8".into()),
        output: dir.join("sd.aqt"),
        ..Default::default()
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
}

/// Few prompts are encoded once, many batch by batch; that changes no picture.
#[test]
fn prompts_come_in_turn_from_a_file() {
    let dir = &directory("sample-prompts");
    v1(dir);
    let words = ["a red cat", "fog", "the sky, a dog", "low"];
    let base = ["sample", "sd.aqt", "-n", "low fog", "-s", "2", "-q", "-b", "2", "--prompts"];
    for (name, lines) in [("few", 3), ("many", 19)] {
        let prompts: Vec<String> = (0..lines).map(|i| format!("{} {}", words[i % 4], words[i / 4 % 4])).collect();
        fs::write(dir.join(name), prompts.join("\n\n")).unwrap();
        for k in ["0/2", "1/2"] {
            works(dir, &[&base[..], &[name, "--n-imgs", "22", "--shard", k, "-o", &format!("{name}-out")]].concat());
        }
        works(dir, &["merge", &format!("{name}-out"), "-q", "-o", &format!("{name}-pictures")]);
        for i in [0, 4, 12, 21] {
            let seed = (42 + i).to_string();
            let prompt = &prompts[i % lines];
            let run =
                ["run", "sd.aqt", "-p", prompt, "-n", "low fog", "-s", "2", "-q", "--seed", &seed, "-o", "one.png"];
            works(dir, &run);
            let made = fs::read(dir.join(format!("{name}-pictures/{i:06}.png"))).unwrap();
            assert!(made == fs::read(dir.join("one.png")).unwrap(), "{name}, image {i}");
        }
    }
    // Features in place of prompts: other work by its hash, the same pictures but for their texts.
    works(dir, &["encode", "sd.aqt", "-p", "fog", "-p", "a dog", "-n", "low fog", "-q", "-o", "features"]);
    works(dir, &["sample", "sd.aqt", "--inputs", "features", "--n-imgs", "3", "-s", "2", "-q", "-o", "features-out"]);
    works(
        dir,
        &[
            "sample",
            "sd.aqt",
            "-p",
            "fog",
            "-p",
            "a dog",
            "-n",
            "low fog",
            "--n-imgs",
            "3",
            "-s",
            "2",
            "-q",
            "-o",
            "texts-out",
        ],
    );
    let [features, texts] = ["features-out", "texts-out"].map(|out| load_bytes(&shard(&dir.join(out), 0, 1), "images"));
    assert!(features == texts);
    save(&dir.join("noise"), &[("latents", &[1, 4, 8, 8], &[0.0; 256])]);
    refuses(dir, &["sample", "sd.aqt", "-p", "fog", "--inputs", "noise", "-o", "x"], &["--inputs latents", "seed + i"]);
}

/// The bytes of a tensor.
fn load_bytes(path: &Path, name: &str) -> Vec<u8> {
    let bytes = fs::read(path).expect("a file");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensor(name).expect("the tensor").data().to_vec()
}

#[test]
fn a_shard_that_was_killed_goes_on_to_the_same_bytes() {
    let dir = &with_letters("sample-killed");
    let long = ["sample", "l.aqt", "--n-imgs", "5", "-s", "60", "-b", "1", "--seed", "9"];
    works(dir, &[&long[..], &["-q", "-o", "whole"]].concat());
    let partial = dir.join("killed/shard-00000-of-00001.partial");
    let done = || fs::read_dir(&partial).map_or(0, |all| all.flatten().filter(|e| ends(&e.file_name())).count());
    let again = [&long[..], &["-o", "killed"]].concat();
    let mut child = program(dir, &again).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts");
    while done() < 2 {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("a child");
    child.wait().expect("a child");
    assert!(!shard(&dir.join("killed"), 0, 1).exists());
    let there = done();
    // Another job does not go on with it.
    refuses(dir, &[&again[..], &["--sampler", "euler"]].concat(), &["Sampler", "expected DDIM", "got Euler"]);
    let ran = finish(&mut program(dir, &again));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.err, format!("note: {there} images were there; going on with the others\n"));
    let bytes = fs::read(shard(&dir.join("killed"), 0, 1)).unwrap();
    assert!(bytes == fs::read(shard(&dir.join("whole"), 0, 1)).unwrap());
    assert!(!partial.exists());
    // And is left alone from then on.
    let told = json(dir, &[&again[..], &["--json"]].concat());
    assert_eq!((&told["already"], &told["images"]), (&true.into(), &serde_json::json!([0, 5])));
}

/// What happens when a scheduler takes a process for dead that is not.
#[test]
fn processes_that_make_one_shard_at_once_make_it_once() {
    let dir = &with_letters("sample-race");
    works(dir, &job(&["-q", "-o", "one"]));
    let again = job(&["-q", "-b", "1", "-o", "many"]);
    let start = |_| program(dir, &again).stdin(Stdio::null()).spawn().expect("it starts");
    let children: Vec<_> = (0..4).map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("a child").success());
    }
    let names: Vec<_> = fs::read_dir(dir.join("many")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["shard-00000-of-00001.safetensors"]);
    assert!(files(&dir.join("many")).into_values().eq(files(&dir.join("one")).into_values()));
}

fn ends(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(".safetensors"))
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = &with_letters("sample-refused");
    let make = |more: &[&str]| works(dir, &job(&[&["-q", "-o", "out"], more].concat()));
    (0..3).for_each(|k| _ = make(&["--shard", &format!("{k}/3")]));
    let first = "out/shard-00000-of-00003.safetensors";
    let again = |more: &[&str], words: &[&str]| {
        refuses(dir, &job(&[&["--shard", "1/3", "-o", "out"], more].concat()), &[words, &[first]].concat());
    };
    again(&["--cfg-scale", "3"], &["CFG scale: expected 4", "got 3"]);
    again(&["--rng", "torch"], &["RNG: expected Fast", "got CPU"]);
    again(&["--sampler", "euler"], &["Sampler", "got Euler"]);
    again(&["--keep", "both"], &["Kept: expected images", "got both"]);
    again(&["--class-labels", "4"], &["Prompts hash"]);
    again(&["--eta", "0.5"], &["Eta: expected none", "got 0.5"]);
    refuses(dir, &job(&["--shard", "1/4", "-o", "out"]), &["number of shards: expected 3", "got 4"]);
    let other_seed = [&JOB[..], &["6", "--shard", "1/3", "-o", "out"]].concat();
    refuses(dir, &other_seed, &["First seed: expected 5", "got 6"]);

    refuses(dir, &job(&["-b", "0", "-o", "x"]), &["batch size"]);
    refuses(dir, &[&JOB[..2], &["--n-imgs", "0", "-o", "x"]].concat(), &["--n-imgs", "got 0"]);
    refuses(dir, &["merge", "nowhere", "-o", "x"], &["nowhere"]);
    fs::create_dir(dir.join("empty")).unwrap();
    refuses(dir, &["merge", "empty", "-o", "x"], &["empty: expected files of shards"]);
    for (to, words) in [("out", ["output out", "is empty"]), ("l.aqt", ["output l.aqt", "is empty"])] {
        refuses(dir, &["merge", "out", "-o", to], &words);
    }
    let second = shard(&dir.join("out"), 1, 3);
    let bytes = fs::read(&second).unwrap();
    let merge = |words: &[&str]| refuses(dir, &["merge", "out", "-o", "x.npz"], words);

    fs::remove_file(&second).unwrap();
    merge(&["shards in out: expected all 3, got 2, without 1 (images 3:7)"]);
    fs::copy(shard(&dir.join("out"), 2, 3), &second).unwrap();
    refuses(
        dir,
        &job(&["--shard", "1/3", "-o", "out"]),
        &["shard-00001-of-00003", "expected shard 1/3, got shard 2/3"],
    );
    merge(&["shard-00001-of-00003", "expected shard 1/3 with images 3:7, got shard 2/3 with images 7:11 of 11"]);
    fs::write(&second, &bytes).unwrap();
    fs::copy(&second, dir.join("out/shard-00001-of-00004.safetensors")).unwrap();
    merge(&["shard-00001-of-00004", "expected one of 3 shards"]);
    fs::remove_file(dir.join("out/shard-00001-of-00004.safetensors")).unwrap();
    works(dir, &job(&["--eta", "0.5", "--shard", "1/3", "-q", "-o", "other"]));
    fs::copy(shard(&dir.join("other"), 1, 3), &second).unwrap();
    merge(&["Eta of out/shard-00001-of-00003.safetensors: expected none, as out/shard-00000-of", "got 0.5"]);
    fs::write(&second, &bytes).unwrap();

    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&second, damaged).unwrap();
    merge(&["shard-00001-of-00003", "got damaged contents"]);
    // Neither does a shard go for done that is not what it was.
    refuses(dir, &job(&["--shard", "1/3", "-o", "out"]), &["shard-00001-of-00003", "made anew", "damaged contents"]);
    fs::write(&second, &bytes).unwrap();
    works(dir, &["merge", "out", "-q", "-o", "x.npz"]);
}

#[test]
fn kinds_of_processors_are_not_mixed_unawares() {
    let dir = &with_letters("sample-isa");
    let few = |more: &[&'static str]| {
        [&["sample", "l.aqt", "--n-imgs", "3", "-s", "1", "--device", "cpu", "-q", "-b", "2"], more].concat()
    };
    let tiers = Tier::available();
    let [one, other] = [tiers[0].name(), tiers[tiers.len() - 1].name()];
    if one == other {
        return println!("skipped: this processor is of one kind");
    }
    for (k, isa) in [("0/2", one), ("1/2", other)] {
        works(dir, &few(&["--isa", isa, "--shard", k, "-o", "out"]));
    }
    let words = [&format!("expected cpu ({one})")[..], "--allow-mixed-isa", &format!("got cpu ({other})")];
    refuses(dir, &["merge", "out", "-o", "x.npz"], &words);
    let told = json(dir, &["merge", "out", "-o", "x.npz", "--allow-mixed-isa", "--json"]);
    assert_eq!(told["devices"], serde_json::json!([format!("cpu ({one})"), format!("cpu ({other})")]));
    // What another kind has begun is made anew, and not gone on with.
    let partial = dir.join("begun/shard-00000-of-00001.partial");
    works(dir, &few(&["--isa", one, "-o", "whole"]));
    works(dir, &few(&["--isa", other, "-o", "begun"]));
    fs::create_dir(&partial).unwrap();
    fs::rename(shard(&dir.join("begun"), 0, 1), partial.join("000000000000.safetensors")).unwrap();
    works(dir, &few(&["--isa", one, "-o", "begun"]));
    let [begun, whole] = ["begun", "whole"].map(|folder| fs::read(shard(&dir.join(folder), 0, 1)).unwrap());
    assert!(begun == whole);
}

#[test]
fn merging_again_is_nothing_new() {
    let dir = &with_letters("sample-merged");
    works(dir, &job(&["-q", "-o", "out"]));
    for output in ["pictures", "a.npz", "a.safetensors"] {
        let first = json(dir, &["merge", "out", "-o", output, "--json"]);
        let before = files(dir);
        let second = json(dir, &["merge", "out", "-o", output, "--json"]);
        assert!(files(dir) == before, "{output}");
        assert_eq!((&first["already"], &second["already"]), (&false.into(), &(output == "pictures").into()));
    }
    let names: Vec<_> = fs::read_dir(dir.join("pictures")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 12, "{names:?}");
    // A folder of another job's pictures, or of anything else, stays what it is.
    works(dir, &job(&["--eta", "1", "-q", "-o", "other"]));
    refuses(dir, &["merge", "other", "-o", "pictures"], &["output pictures", "something there"]);
    works(dir, &job(&["--keep", "latents", "-q", "-o", "latents"]));
    for output in ["x", "x.npz"] {
        refuses(dir, &["merge", "latents", "-o", output], &["output x", ".safetensors", "latents alone"]);
    }
    works(dir, &["merge", "latents", "-q", "-o", "latents.safetensors"]);
    assert_eq!(load(&dir.join("latents.safetensors"), "latents").0, [11, 4, 12, 12]);
}

/// No change of a byte and no truncation of a file goes unnoticed, or does more than being told.
#[test]
fn files_are_believed_nothing() {
    let dir = &with_letters("sample-hostile");
    works(dir, &["sample", "l.aqt", "--class-labels", "A", "-s", "1", "-q", "--keep", "latents", "-o", "out"]);
    let path = shard(&dir.join("out"), 0, 1);
    let bytes = fs::read(&path).unwrap();
    let opens = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Merge::open(&dir.join("out"), false).is_ok()
    };
    assert!(opens(&bytes) && bytes.len() < 4000, "{}", bytes.len());
    // All of what is said of the images, and a share of the rest.
    let head = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for at in (0..head).chain((head..bytes.len()).step_by(5)) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(!opens(&changed), "byte {at}");
    }
    (0..bytes.len()).step_by(7).for_each(|len| assert!(!opens(&bytes[..len]), "{len} bytes"));
    assert!(!opens(&[&bytes[..], &[0]].concat()));
}

/// Numbers in a sound file that mean nothing.
#[test]
fn sealed_nonsense_is_refused() {
    let dir = &with_letters("sample-sealed");
    works(dir, &["sample", "l.aqt", "--class-labels", "A", "-s", "1", "-q", "-o", "out"]);
    let path = shard(&dir.join("out"), 0, 1);
    let bytes = fs::read(&path).unwrap();
    let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = std::str::from_utf8(&bytes[8..8 + head]).unwrap();
    for (from, to) in [
        (r#"\"images\":[0,1]"#, r#"\"images\":[1,0]"#),
        (r#"\"images\":[0,1]"#, r#"\"images\":[0,2]"#),
        (r#"\"images\":[0,1]"#, r#"\"images\":[0,0]"#),
        (r#"\"shard\":[0,1]"#, r#"\"shard\":[1,1]"#),
        (r#"\"shard\":[0,1]"#, r#"\"shard\":[0,0]"#),
        (r#"\"format\":1"#, r#"\"format\":2"#),
        (r#""shape":[1,48,48,3]"#, r#""shape":[1,48,72,2]"#),
        (r#""shape":[1,48,48,3]"#, r#""shape":[1,1,6912,1,1,1]"#),
        (r#""shape":[1,48,48,3]"#, r#""shape":[2,24,48,3]"#),
        (r#""images":{"#, r#""imaged":{"#),
        (r#""xxh3":{"#, r#""xxh4":{"#),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from} in {text}");
        let mut changed = text.replace(from, to).trim_end().to_owned();
        while !changed.len().is_multiple_of(8) {
            changed.push(' ');
        }
        let mut sealed = (changed.len() as u64).to_le_bytes().to_vec();
        sealed.extend([changed.as_bytes(), &bytes[8 + head..bytes.len() - 16]].concat());
        let hash = xxhash_rust::xxh3::xxh3_128(&sealed).to_be_bytes();
        sealed.extend(hash);
        fs::write(&path, sealed).unwrap();
        refuses(dir, &["merge", "out", "-o", "x.npz"], &["shard-00000-of-00001.safetensors"]);
    }
}

#[test]
fn videos_are_made_in_parts_too() {
    let dir = &directory("sample-videos");
    let options = packer::emit::Options {
        model: common::repository("tests/fixtures/latte"),
        q_config: Some("f32".into()),
        output: dir.join("v.aqt"),
        ..Default::default()
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let base = [
        "sample",
        "v.aqt",
        "-p",
        "a red cat",
        "--n-imgs",
        "3",
        "-s",
        "2",
        "-W",
        "24",
        "-H",
        "16",
        "-q",
        "--keep",
        "both",
    ];
    works(dir, &[&base[..], &["-o", "whole"]].concat());
    ["0/2", "1/2"].iter().for_each(|k| _ = works(dir, &[&base[..], &["-o", "parts", "--shard", k]].concat()));
    works(dir, &["merge", "parts", "-q", "-o", "m.safetensors"]);
    assert!(fs::read(dir.join("m.safetensors")).unwrap() == fs::read(shard(&dir.join("whole"), 0, 1)).unwrap());
    assert_eq!(load_axes(&dir.join("m.safetensors"), "images"), [3, 3, 16, 24, 3]);
    works(dir, &["merge", "parts", "-q", "-o", "pictures"]);
    works(
        dir,
        &["run", "v.aqt", "-p", "a red cat", "-s", "2", "-W", "24", "-H", "16", "-q", "--seed", "44", "-o", "one/"],
    );
    for frame in 0..3 {
        let [made, one] = [format!("pictures/000002-{frame:03}.png"), format!("one/frame_{frame:03}.png")];
        assert!(fs::read(dir.join(made)).unwrap() == fs::read(dir.join(one)).unwrap(), "frame {frame}");
    }
}

fn load_axes(path: &Path, name: &str) -> Vec<usize> {
    let bytes = fs::read(path).expect("a file");
    safetensors::SafeTensors::deserialize(&bytes)
        .expect("safetensors")
        .tensor(name)
        .expect("the tensor")
        .shape()
        .to_vec()
}

/// A command to which schedulers have said nothing, whatever they said to this process.
pub fn unscheduled(command: &mut Command) -> &mut Command {
    for name in ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "AQUATINT_SHARDS"] {
        command.env_remove(name);
    }
    command
}

#[test]
fn schedulers_say_which_shard_it_is() {
    let dir = &with_letters("sample-scheduled");
    let run = |variables: &[(&str, &str)], more: &[&str]| {
        let mut command = program(dir, &job(&[&["-o", "out"], more].concat()));
        finish(unscheduled(&mut command).envs(variables.iter().copied()))
    };
    let slurm = [("ID", "4"), ("COUNT", "4"), ("MIN", "1"), ("MAX", "4")];
    let slurm = slurm.map(|(name, value)| (format!("SLURM_ARRAY_TASK_{name}"), value));
    let slurm = slurm.each_ref().map(|(name, value)| (name.as_str(), *value));
    let ran = run(&slurm, &[]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), "note: shard 3/4, as SLURM_ARRAY_TASK_ID says\n"));
    assert!(ran.out.starts_with("shard 3/4, images 8 to before 11 of 11: "), "{}", ran.out);
    let ran = run(&[("SLURM_ARRAY_TASK_ID", "2")], &["--shards", "4", "-q"]);
    assert_eq!((ran.code, ran.err + &ran.out), (Some(0), String::new()));
    let ran = run(&[("JOB_COMPLETION_INDEX", "1"), ("AQUATINT_SHARDS", "4")], &[]);
    assert_eq!(ran.err, "note: shard 1/4, as JOB_COMPLETION_INDEX says\n");
    // What the command line says comes first.
    let ran = run(&slurm, &["--shard", "0/4"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    works(dir, &["merge", "out", "-q", "-o", "x.npz"]);
    let ran = run(&[("JOB_COMPLETION_INDEX", "4")], &["--shards", "4"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err.contains("JOB_COMPLETION_INDEX: expected a shard below the number of shards, 4, got 4"),
        "{}",
        ran.err
    );
    let ran = run(&[], &["--shards", "4"]);
    assert!(ran.err.starts_with("error: --shards: expected SLURM_ARRAY_TASK_ID or"), "{}", ran.err);
}
