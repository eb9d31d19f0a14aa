//! Calibration: its numbers against torch's, and that nothing but the samples decides about them.

use crate::common::{Dense, Scratch, fixture, load, pack_as};
use aquatint::options::SamplingOptions;
use aquatint::pipeline::NoiseSource;
use aquatint::raw::format::{Meta, Packed};
use aquatint::shard::Shard;
use packer::calibrate::{Calibration, Event, Settings, calibrate, merge};
use packer::pass::Split;
use packer::quantize::{BINS, Moments, SecondMoments};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A run of `tests/fixtures/make_moments.py`.
struct Case {
    name: &'static str,
    model: &'static str,
    guidance: Option<f32>,
    prompts: Option<&'static str>,
    /// Layers that it tells of.
    layers: usize,
}

const CASES: [Case; 4] = [
    Case { name: "dit", model: "dit/d2", guidance: Some(3.0), prompts: Some("class 0\n3\n6\n"), layers: 21 },
    Case { name: "asym", model: "unet/asym", guidance: None, prompts: None, layers: 73 },
    Case { name: "sym", model: "unet/sym", guidance: None, prompts: None, layers: 68 },
    Case {
        name: "sd",
        model: "sd/v1",
        guidance: Some(5.0),
        prompts: Some("a cat\n\n  a dog on a hill\na cat\n"),
        layers: 27,
    },
];

impl Case {
    /// The settings of the run, with output `output` in `scratch`.
    fn settings(&self, scratch: &Scratch, output: &str) -> Settings {
        let mut settings = Settings::new(fixture(self.model), scratch.path(output));
        settings.sampling = SamplingOptions { steps: Some(6), cfg_scale: self.guidance, ..Default::default() };
        (settings.images, settings.calls, settings.seed, settings.noise) = (3, 3, 7, NoiseSource::Torch);
        if let Some(prompts) = self.prompts {
            fs::write(scratch.path("prompts.txt"), prompts).expect("room");
            settings.prompts = Some(scratch.path("prompts.txt"));
        }
        settings
    }
}

fn run(settings: &Settings) -> Calibration {
    calibrate(settings, &mut |_| true).expect("it runs");
    Calibration::open(&settings.output).expect("a calibration")
}

/// Column `j` of the probe at row `k`: see the script.
fn sign(k: usize, j: usize) -> f64 {
    let z = (2 * k as u64 + j as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (z ^ (z >> 31)) >> 63 == 0 { 1.0 } else { -1.0 }
}

/// The product of a matrix of `rows` and `cols` with the probe.
fn probed(rows: usize, cols: usize, at: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let entry = |i: usize, j: usize| (0..cols).map(|k| at(i, k) * sign(k, j)).sum();
    (0..rows).flat_map(|i| [entry(i, 0), entry(i, 1)]).collect()
}

/// `|a - b| / |b|`.
pub fn distance(a: &[f64], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(a, &b)| (a - f64::from(b)).powi(2)).sum::<f64>();
    (squares / b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>()).sqrt()
}

/// How far what is known of a layer's moments is from the fixture's.
pub fn moments_distance(moments: &Moments, layer: &str, want: &BTreeMap<String, Dense>) -> f64 {
    let of = |what: &str| &want[&format!("{layer}.{what}")].values[..];
    let mean = distance(&moments.mean, of("mean"));
    let k = moments.inputs();
    let second = match &moments.second {
        SecondMoments::Dense(_) => distance(&probed(k, k, |i, j| moments.at(i, j)), of("second")),
        SecondMoments::Toeplitz { channels, lags, .. } => {
            let rows = lags.len() / channels;
            distance(&probed(rows, *channels, |i, j| lags[i * channels + j]), of("lags"))
        }
    };
    mean.max(second)
}

/// The layers that the fixture tells of: the name of their weights in the packed file, by that in the fixture.
fn layers(case: &Case, want: &BTreeMap<String, Dense>) -> BTreeMap<String, String> {
    let names = want.keys().filter_map(|key| key.strip_suffix(".mean"));
    let own = names.filter(|name| name.split_once(':').is_some_and(|(of, _)| of == case.name));
    // The packed file has the names of the checkpoint, which of this model are those of older versions.
    let old = |name: &str| {
        let names = [("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")];
        names.iter().fold(name.to_owned(), |name, (new, old)| name.replace(new, old))
    };
    let packed = |key: &str| {
        let (_, name) = key.split_once(':').expect("a case and a layer");
        match case.name {
            "sym" => old(name),
            // A copy of block 0's, which alone is in the file.
            "dit" => name.replace("blocks.1.norm1.emb.timestep_embedder", "blocks.0.norm1.emb.timestep_embedder"),
            // A module of transformers is called otherwise than in checkpoints.
            "sd" => name.replace("text_encoder/encoder.", "text_encoder/text_model.encoder."),
            _ => name.to_owned(),
        }
    };
    own.map(|key| (key.to_owned(), packed(key))).collect()
}

#[test]
fn moments_are_those_of_diffusers() {
    let want = load(&fixture("moments.safetensors"));
    for case in &CASES {
        let scratch = Scratch::new("moments");
        let layers = layers(case, &want);
        let (mut convolutions, mut worst) = (0, 0f64);
        for dense in [Settings::DENSE, 0] {
            let calibration = run(&Settings { dense, ..case.settings(&scratch, "c.safetensors") });
            assert_eq!(layers.len(), case.layers, "{}", case.name);
            for (key, name) in &layers {
                let moments = calibration.moments(name).expect("sound").unwrap_or_else(|| panic!("{name} is there"));
                let far = moments_distance(&moments, key, &want);
                assert!(far < 1e-5, "{key}, dense below {dense}: {far:e}");
                worst = worst.max(far);
                convolutions += usize::from(matches!(moments.second, SecondMoments::Toeplitz { .. }));
            }
        }
        assert_eq!(convolutions > 0, case.name != "dit", "{}", case.name);
        println!("{}: {} layers, at most {worst:e}", case.name, layers.len());
    }
}

#[test]
fn ranges_are_those_of_diffusers() {
    let want = load(&fixture("moments.safetensors"));
    for case in &CASES {
        let scratch = Scratch::new("ranges");
        let calibration = run(&case.settings(&scratch, "c.safetensors"));
        for (key, name) in layers(case, &want) {
            let [input] = calibration.record().layers[&name][..] else { panic!("{name} reads one value") };
            let sums = calibration.sums(input).unwrap();
            let seen = calibration.extremes(&name).unwrap().expect("it is there");
            let range: Vec<f64> = seen.low.iter().chain(&seen.high).map(|&v| f64::from(v)).collect();
            let far = distance(&range, &want[&format!("{key}.range")].values);
            assert!(far < 1e-5, "{key}: range {far:e}");
            let far = distance(&[sums.squared_ranges / sums.groups], &want[&format!("{key}.spread")].values);
            assert!(far < 1e-5, "{key}: spread {far:e}");
            // Extremes of calls are those of all, and histograms have every value once.
            let least = |x: &[f32]| x.iter().copied().fold(f32::INFINITY, f32::min);
            let greatest = |x: &[f32]| x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (calls, _) = calibration.ranges(&[input]).unwrap();
            assert_eq!(least(&sums.low), least(&seen.low), "{key}");
            assert_eq!(greatest(&sums.high), greatest(&seen.high), "{key}");
            assert_eq!(calls.iter().map(|call| call.seen.low).fold(f32::INFINITY, f32::min), least(&seen.low), "{key}");
            let last = calls.last().expect("calls");
            assert_eq!(least(&last.low), last.seen.low, "{key}");
            if calibration.record().inputs[input].kernel.is_none() {
                assert_eq!(sums.bins.iter().sum::<u64>() as f64, sums.weight * sums.sum.len() as f64, "{key}");
            }
        }
    }
}

/// What the comparison above would tell if a calibration looked at less, or elsewhere.
#[test]
fn moments_without_a_branch_or_of_other_calls_are_told_from_diffusers() {
    let want = load(&fixture("moments.safetensors"));
    let case = &CASES[0];
    let scratch = Scratch::new("guards");
    let settings = case.settings(&scratch, "c.safetensors");
    let one_branch = SamplingOptions { cfg_scale: Some(1.0), ..settings.sampling.clone() };
    let changed = [
        ("one branch", Settings { sampling: one_branch, ..settings.clone() }),
        ("other calls", Settings { calls: 2, ..settings.clone() }),
        ("other noise", Settings { seed: 8, ..settings.clone() }),
        ("fewer images", Settings { images: 2, ..settings.clone() }),
    ];
    for (what, settings) in changed {
        let calibration = run(&settings);
        let name = "transformer/transformer_blocks.1.ff.net.0.proj.weight";
        let moments = calibration.moments(name).expect("sound").expect("a layer");
        let far = moments_distance(&moments, &format!("dit:{name}"), &want);
        assert!(far > 1e-2, "{what}: {far:e}");
    }
}

#[test]
fn layers_that_read_conditions_alone_see_all_calls_and_more_classes_than_images() {
    let scratch = Scratch::new("classes");
    let settings = Settings { prompts: None, ..CASES[0].settings(&scratch, "c.safetensors") };
    let seen = |settings: &Settings, layer: &str| {
        let calibration = run(settings);
        let sums = calibration.sums(calibration.record().layers[layer][0]).unwrap();
        (calibration.record().run.conditions, [sums.rows, sums.weight], sums.bins.len() / BINS)
    };
    // 6 calls of 10 classes and none, which guidance needs as often as all others together.
    let modulation = "transformer/transformer_blocks.0.norm1.linear.weight";
    assert_eq!(seen(&settings, modulation), (10, [6.0 * 11.0, 6.0 * 20.0], 6));
    let one = SamplingOptions { cfg_scale: Some(1.0), ..settings.sampling.clone() };
    assert_eq!(seen(&Settings { sampling: one, ..settings.clone() }, modulation), (10, [60.0; 2], 6));
    // 3 calls of 3 images of 16 tokens, twice.
    let query = "transformer/transformer_blocks.0.attn1.to_q.weight";
    assert_eq!(seen(&settings, query), (10, [3.0 * 3.0 * 16.0 * 2.0; 2], 3));
    // Those that the user named, and no others.
    assert_eq!(seen(&CASES[0].settings(&scratch, "c.safetensors"), modulation), (3, [6.0 * 4.0, 6.0 * 6.0], 6));
    // Parts see each condition in one of them but for the one that all have.
    let parts =
        [0, 1, 2].map(|index| seen(&Settings { shard: Some(Shard { index, of: 3 }), ..settings.clone() }, modulation));
    assert_eq!(parts.map(|(_, [rows, _], _)| rows), [6.0 * 5.0, 6.0 * 4.0, 6.0 * 4.0]);
}

#[test]
fn neither_threads_nor_batches_nor_memory_nor_interruptions_change_a_byte() {
    for case in &CASES {
        let scratch = Scratch::new("same");
        let settings = Settings { dense: 72, ..case.settings(&scratch, "c.safetensors") };
        run(&settings);
        let expected = fs::read(&settings.output).expect("it is there");
        let bytes = |settings: &Settings| {
            calibrate(settings, &mut |_| true).expect("it runs");
            fs::read(&settings.output).expect("it is there")
        };
        for threads in [1, 2, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            for batch in [1, 2] {
                let got = pool.install(|| bytes(&Settings { batch, ..settings.clone() }));
                assert!(got == expected, "{}: {threads} threads, batches of {batch}", case.name);
            }
        }
        let small = Settings { memory: 60_000, ..settings.clone() };
        assert!(bytes(&small) == expected, "{}: in groups", case.name);
        assert_eq!(interrupted(&small, &expected), interrupted(&settings, &expected), "{}", case.name);
        let left: Vec<_> = scratch.entries().into_iter().filter(|name| name != "prompts.txt").collect();
        assert_eq!(left, ["c.safetensors"]);
    }
}

/// Calibrates, ended each time some work was saved or right after it, until the file is there, and compares it. Whether
/// there was an interruption at all.
fn interrupted(settings: &Settings, expected: &[u8]) -> bool {
    fs::remove_file(&settings.output).expect("it is there");
    let often = Settings { save_every: Duration::ZERO, batch: 1, ..settings.clone() };
    let (mut times, mut resumed) = (0, 0);
    loop {
        let mut after = None;
        let done = calibrate(&often, &mut |event| {
            match event {
                Event::Resumed(_) => resumed += 1,
                Event::Saved => after = Some(0),
                // Some calls that are lost.
                Event::Done(..) => after = after.map(|n| n + 1),
                _ => {}
            }
            after.is_none_or(|n| n < times % 3)
        });
        times += 1;
        match done {
            Ok(_) => break,
            Err(e) => assert!(e.to_string().contains("the same command goes on with it"), "{e}"),
        }
        assert!(times < 500 && !settings.output.exists());
    }
    assert!(fs::read(&settings.output).expect("it is there") == expected, "{times} times");
    assert_eq!(resumed, times - 1);
    times > 3
}

#[test]
fn shards_add_up_to_the_whole() {
    for case in &CASES {
        let scratch = Scratch::new("shards");
        let whole = run(&case.settings(&scratch, "whole.safetensors"));
        let part = |index: usize| {
            let name = format!("{index}.safetensors");
            let settings = Settings { shard: Some(Shard { index, of: 2 }), ..case.settings(&scratch, &name) };
            run(&settings);
            settings.output
        };
        let parts = [part(0), part(1)];
        let merged = scratch.path("merged.safetensors");
        let shards = merge(&parts, &merged).expect("parts of one calibration");
        assert_eq!((shards.of, &shards.parts[..]), (2, &[0, 1][..]));
        let bytes = fs::read(&merged).expect("it is there");
        merge(&[parts[1].clone(), parts[0].clone()], &merged).expect("parts of one calibration");
        assert!(fs::read(&merged).expect("it is there") == bytes, "the order of arguments");
        let merged = Calibration::open(&merged).expect("a calibration");
        for name in whole.record().layers.keys() {
            let [a, b] = [&whole, &merged].map(|c| c.moments(name).expect("sound").expect("a layer"));
            let (a, b) = (numbers(&a), numbers(&b));
            let norm = a.iter().map(|v| v * v).sum::<f64>().sqrt();
            let far = a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            assert!(far <= 1e-12 * norm, "{}: {name}: {far:e} of {norm:e}", case.name);
        }
        for input in 0..whole.record().inputs.len() {
            let [a, b] = [&whole, &merged].map(|c| c.sums(input).unwrap());
            assert_eq!((a.bins, a.low, a.high), (b.bins, b.low, b.high));
        }
        refuses_shards(&scratch, case, &parts);
    }
}

fn numbers(moments: &Moments) -> Vec<f64> {
    let (SecondMoments::Dense(second) | SecondMoments::Toeplitz { lags: second, .. }) = &moments.second;
    moments.mean.iter().chain(second).copied().collect()
}

fn refuses_shards(scratch: &Scratch, case: &Case, parts: &[PathBuf; 2]) {
    let to = scratch.path("none.safetensors");
    let refused = |parts: &[&PathBuf], word: &str| {
        let parts: Vec<PathBuf> = parts.iter().map(|&path| path.clone()).collect();
        let e = merge(&parts, &to).map(|_| ()).expect_err(word).to_string();
        assert!(e.contains(word), "{e}");
    };
    refused(&[&parts[0]], "at least two");
    refused(&[&parts[0], &parts[0]], "shard 0/2, which is there twice");
    let other = scratch.path("other.safetensors");
    let settings =
        Settings { seed: 9, shard: Some(Shard { index: 1, of: 2 }), ..case.settings(scratch, "other.safetensors") };
    run(&settings);
    refused(&[&parts[0], &other], "other runs: steps, sampler, guidance, seed, prompts or calls differ");
    run(&Settings { shard: Some(Shard { index: 1, of: 3 }), ..case.settings(scratch, "other.safetensors") });
    refused(&[&parts[0], &other], "another number of shards");
    assert!(!to.exists());
}

#[test]
fn a_packed_file_of_floats_is_as_good_as_its_source_and_no_other_is() {
    let scratch = Scratch::new("packed");
    let case = &CASES[0];
    let settings = case.settings(&scratch, "c.safetensors");
    run(&settings);
    let expected = fs::read(&settings.output).expect("it is there");
    let packed = |spec: &str| {
        let path = scratch.path(&format!("{spec}.aqt"));
        pack_as(&fixture(case.model), Some(spec), &path).expect("it packs");
        path
    };
    let float = packed("f32");
    run(&Settings { model: float.clone(), ..settings.clone() });
    assert!(fs::read(&settings.output).expect("it is there") == expected);
    let e = calibrate(&Settings { model: packed("w4a16"), ..settings.clone() }, &mut |_| true).unwrap_err().to_string();
    assert!(e.contains("expected f32 throughout"), "{e}");

    // The states of a file of the same floats are the same, those of a coarse one are not; a stranger's are refused.
    let name = "transformer/transformer_blocks.1.ff.net.0.proj.weight";
    let moments = |path: PathBuf| {
        let calibration = run(&Settings { trajectory: Some(path), ..settings.clone() });
        numbers(&calibration.moments(name).expect("sound").expect("a layer"))
    };
    let own =
        numbers(&Calibration::open(&settings.output).expect("sound").moments(name).expect("sound").expect("a layer"));
    assert_eq!(moments(float), own);
    let other = moments(packed("w2a8"));
    let far = own.iter().zip(&other).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    assert!(far > 1e-3 * own.iter().map(|v| v * v).sum::<f64>().sqrt(), "{far}");
    let stranger = scratch.path("stranger.aqt");
    pack_as(&fixture("dit/d1p1"), None, &stranger).expect("it packs");
    let e =
        calibrate(&Settings { trajectory: Some(stranger), ..settings.clone() }, &mut |_| true).unwrap_err().to_string();
    assert!(e.contains("expected a file packed from the weights of d2, got one of d1p1 from others"), "{e}");
}

/// Whether `calibration` is one of the model of a packed file.
fn check(calibration: &Calibration, meta: &Meta) -> packer::Result<()> {
    calibration.check_model(&meta.pipeline, &meta.sources)
}

#[test]
fn a_calibration_belongs_to_its_model() {
    let scratch = Scratch::new("belongs");
    let calibration = run(&CASES[0].settings(&scratch, "c.safetensors"));
    let meta = |model: &Path| {
        let path = scratch.path("x.aqt");
        pack_as(model, Some("w4a8"), &path).expect("it packs");
        Packed::open(&path).expect("a packed file").meta().clone()
    };
    check(&calibration, &meta(&fixture("dit/d2"))).expect("its own model");
    let e = check(&calibration, &meta(&fixture("dit/d1p1"))).unwrap_err().to_string();
    assert!(e.contains("expected one of d1p1 (") && e.contains("packer calibrate makes it, got one of d2 ("), "{e}");
    // The same names with other weights.
    let changed = scratch.copy_of("d2");
    crate::common::edit_weights(&changed, "transformer", |tensors| {
        tensors.values_mut().next().expect("tensors").values[0] += 1.0;
    });
    assert!(check(&calibration, &meta(&changed)).is_err());
}

#[test]
fn damaged_calibrations_are_refused_or_read_but_never_panic() {
    let scratch = Scratch::new("damaged");
    let settings = CASES[0].settings(&scratch, "c.safetensors");
    run(&settings);
    let bytes = fs::read(&settings.output).expect("it is there");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let path = scratch.path("damaged.safetensors");
    let read = |bytes: &[u8]| -> packer::Result<()> {
        fs::write(&path, bytes).expect("room");
        let calibration = Calibration::open(&path)?;
        for name in calibration.record().layers.keys() {
            calibration.moments(name)?;
        }
        calibration.summary()?;
        Ok(())
    };
    read(&bytes).expect("whole");
    for len in (0..header + 64).step_by(97).chain([bytes.len() - 1]) {
        assert!(read(&bytes[..len]).is_err(), "{len} bytes");
    }
    for at in (0..header).step_by(13) {
        for bit in [0x01, 0x10] {
            let mut bytes = bytes.clone();
            bytes[at] ^= bit;
            let _ = read(&bytes);
        }
    }
    let text = |from: &str, to: &str| {
        let head = String::from_utf8(bytes[8..header].to_vec()).expect("text");
        assert!(head.contains(from), "{from}");
        let head = head.replacen(from, to, 1);
        [&(head.len() as u64).to_le_bytes()[..], head.as_bytes(), &bytes[header..]].concat()
    };
    for (from, to, told) in [
        (r#"\"version\":3"#, r#"\"version\":2"#, "expected version 3, as packer calibrate makes it, got version 2"),
        ("aquatint_calibration", "something", "expected a file that packer calibrate wrote, got other safetensors"),
        (r#"\"channels\":16"#, r#"\"channels\":17"#, "expected F64 [17], got F64 [16]"),
        (r#"\"channels\":16"#, r#"\"channels\":18446744073709551615"#, "sizes that there are"),
        (r#"\"calls\":6"#, r#"\"calls\":9223372036854775807"#, "inputs."),
        (r#"\"chosen\":[1"#, r#"\"chosen\":[99"#, "shards and calls within their numbers"),
        (r#".weight\":[0]"#, r#".weight\":[99]"#, "expected inputs below 13, got 99"),
        (r#"\"of\":1"#, r#"\"of\":0"#, "shards and calls within their numbers"),
    ] {
        let e = read(&text(from, to)).expect_err(to).to_string();
        assert!(e.contains(told) && !e.contains('\n'), "{to}: {e}");
    }
    // Numbers that are none.
    let mut poisoned = bytes.clone();
    let len = poisoned.len();
    poisoned[header + 40..len].fill(0xff);
    let e = read(&poisoned).expect_err("not a number").to_string();
    assert!(e.contains("NaN"), "{e}");
}

#[test]
fn settings_that_cannot_be_are_refused_with_a_remedy() {
    let scratch = Scratch::new("settings");
    let refused = |settings: Settings, word: &str| {
        let e = calibrate(&settings, &mut |_| true).map(|_| ()).expect_err(word).to_string();
        assert!(e.contains(word) && !e.contains('\n'), "{e}");
        assert!(!settings.output.exists());
    };
    let (classes, texts) = (&CASES[0], &CASES[3]);
    let new = |case: &Case| case.settings(&scratch, "c.safetensors");
    refused(Settings { prompts: None, ..new(texts) }, "expected --prompts FILE, one a line");
    refused(Settings { images: 0, ..new(classes) }, "cali-n: expected at least 1");
    refused(Settings { shard: Some(Shard { index: 0, of: 4 }), ..new(classes) }, "N at most the 3 images");
    let prompts = scratch.path("p.txt");
    for (text, word) in [
        (&b"\n  \n"[..], "got no line that holds anything"),
        (b"class 3\nclass 99\n", "got `class 99`"),
        (b"\xff\xfe", "text with a prompt or class per line"),
    ] {
        fs::write(&prompts, text).expect("room");
        refused(Settings { prompts: Some(prompts.clone()), ..new(classes) }, word);
    }
    let onto = Settings { prompts: Some(prompts.clone()), output: prompts.clone(), ..new(classes) };
    let e = calibrate(&onto, &mut |_| true).map(|_| ()).expect_err("an input").to_string();
    assert!(e.contains("got the input"), "{e}");
    fs::write(&prompts, "class 3\n4\n").expect("room");
    let calibration = run(&Settings { prompts: Some(prompts.clone()), ..new(classes) });
    let shown = &calibration.record().run.prompts;
    assert_eq!(shown, &["class 3, alias 3", "class 4, alias 4", "class 3, alias 3"]);
    fs::write(&prompts, "a cat\n").expect("room");
    refused(Settings { prompts: Some(prompts), ..CASES[1].settings(&scratch, "d.safetensors") }, "noise alone");
}

#[test]
fn unfinished_work_of_other_settings_is_refused() {
    let scratch = Scratch::new("unfinished");
    let settings = Settings { save_every: Duration::ZERO, ..CASES[0].settings(&scratch, "c.safetensors") };
    assert!(calibrate(&settings, &mut |event| !matches!(event, Event::Saved)).is_err());
    let e = calibrate(&Settings { seed: 8, ..settings.clone() }, &mut |_| true).unwrap_err().to_string();
    assert!(e.contains("c.safetensors.partial") && e.contains("got that of other settings"), "{e}");
    // What is damaged is told, and how to go on.
    let states = scratch.path("c.safetensors.partial/states.safetensors");
    let whole = fs::read(&states).expect("it is there");
    for len in [0, 9, whole.len() - 1] {
        fs::write(&states, &whole[..len]).expect("room");
        let e = calibrate(&settings, &mut |_| true).unwrap_err().to_string();
        assert!(e.contains("one begins anew") && !e.contains('\n'), "{e}");
    }
    fs::write(&states, &whole).expect("room");
    run(&settings);
    assert_eq!(scratch.entries(), ["c.safetensors", "prompts.txt"]);
}

#[test]
fn halves_of_a_split_layer_are_calibrated_each_with_its_own_inputs() {
    let scratch = Scratch::new("split-calibrated");
    let case = &CASES[3];
    let settings = case.settings(&scratch, "c.safetensors");
    run(&settings);
    for (split, layer) in [(Split::Shortcut, "conv_shortcut"), (Split::Conv, "conv1")] {
        halves_are_calibrated(&scratch, case, &settings, split, layer);
    }
}

fn halves_are_calibrated(scratch: &Scratch, case: &Case, settings: &Settings, split: Split, layer: &str) {
    let config = scratch.path("halves.toml");
    let text = format!("default = \"f16\"\n[layers]\n\"up_blocks.*{layer}\" = \"w3a8\"\n");
    fs::write(&config, text).expect("room");
    let pack = |split| {
        let options = packer::emit::Options {
            model: fixture(case.model),
            q_config: Some(config.display().to_string()),
            calibration: Some(settings.output.clone()),
            split,
            output: scratch.path("m.aqt"),
            ..Default::default()
        };
        packer::emit::pack(&options, &mut |_| ()).expect("it packs").layers
    };
    let (whole, halves) = (pack(Vec::new()), pack(vec![split]));
    assert_eq!(halves.len(), whole.len() + 6);
    let lines =
        halves.iter().filter(|line| line.meta.name.starts_with("unet/up_blocks") && line.meta.name.contains(layer));
    let mut count = 0;
    for line in lines {
        let (Some(error), Some(nearest)) = (line.meta.output_error, line.meta.nearest_output_error) else {
            panic!("{:?} is not calibrated", line.meta);
        };
        assert!(error < nearest, "{}: {error} {nearest}", line.meta.name);
        count += 1;
    }
    assert_eq!(count, 12);
}
