//! Reconstruction of whole models: that what is packed is what was trained, and that nothing but the settings decides about it.

use crate::common::{Scratch, fixture, load, pack_as};
use aquatint::options::SamplingOptions;
use packer::calibrate::{self, calibrate};
use packer::emit::{Options, Report, pack};
use packer::reconstruct::{Event, Learned, Reconstruction, Settings, Training, Unit, reconstruct};
use packer::unpack::unpack;
use packer::weights::Float;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small calibration of fixture model `name`.
fn calibrated(scratch: &Scratch, name: &str, prompts: Option<&str>) -> PathBuf {
    let mut settings = calibrate::Settings::new(fixture(name), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(4), cfg_scale: Some(3.0), ..SamplingOptions::default() };
    (settings.images, settings.calls) = (3, 3);
    settings.prompts = prompts.map(|lines| {
        fs::write(scratch.path("prompts.txt"), lines).unwrap();
        scratch.path("prompts.txt")
    });
    calibrate(&settings, &mut |_| true).unwrap();
    settings.output
}

/// A configuration that makes codes of all layers, the small ones too.
fn all_layers(scratch: &Scratch, spec: &str) -> String {
    let path = scratch.path("all.json");
    fs::write(&path, format!("{{\"*\": \"{spec}\"}}")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn settings(scratch: &Scratch, name: &str, spec: &str, unit: Unit) -> Settings {
    let (calibration, config) = (scratch.path("c.safetensors"), all_layers(scratch, spec));
    let mut settings = Settings::new(fixture(name), config, calibration, scratch.path("r.safetensors"));
    (settings.unit, settings.batch, settings.samples) = (unit, 4, 12);
    settings.training = Training { iterations: 60, rate: 0.05, ..settings.training };
    settings.prompts = Some(scratch.path("prompts.txt")).filter(|path| path.exists());
    settings
}

fn import(scratch: &Scratch, name: &str, spec: &str, file: &Path) -> packer::Result<Report> {
    let options = Options {
        model: fixture(name),
        q_config: Some(all_layers(scratch, spec)),
        import: Some(file.to_owned()),
        output: scratch.path("m.aqt"),
        ..Options::default()
    };
    pack(&options, &mut |_| ())
}

/// Checks that the packed weights and biases of a model are those of the file.
fn assert_packed(scratch: &Scratch, name: &str, component: &str, config: &str, file: &Path) -> usize {
    let report = import(scratch, name, config, file).unwrap();
    let (out, plain) = (scratch.path("w.safetensors"), scratch.path("f.safetensors"));
    unpack(&scratch.path("m.aqt"), &out, Some(component), Float::F32).unwrap();
    pack_as(&fixture(name), Some("f32"), &scratch.path("f.aqt")).unwrap();
    unpack(&scratch.path("f.aqt"), &plain, Some(component), Float::F32).unwrap();
    let (got, float) = (load(&out), load(&plain));
    let reconstruction = Reconstruction::open(file).unwrap().unwrap();
    let lines: BTreeMap<&str, _> = report.layers.iter().map(|line| (line.meta.name.as_str(), line)).collect();
    let mut biases = 0;
    for record in &reconstruction.record().layers {
        let layer = reconstruction.layer(record).unwrap();
        let key = record.name.split_once('/').unwrap().1;
        let matrix = &layer.matrix;
        // Taps of a convolution, and values and gates of a gated layer, lie in another order in the file.
        let shape = &got[key].shape;
        let inner: usize = shape.get(2..).map_or(1, |taps| taps.iter().product());
        let interleaved = key.ends_with("ff.net.0.proj.weight") && component == "unet";
        let source = |r: usize| if interleaved { r / 2 + r % 2 * (matrix.rows / 2) } else { r };
        for (r, c) in (0..matrix.rows).flat_map(|r| (0..matrix.cols).map(move |c| (r, c))) {
            let (tap, channel) = (c / shape[1], c % shape[1]);
            let value = got[key].values[source(r) * matrix.cols + channel * inner + tap];
            assert_eq!(value, matrix.weight(r, c), "{key} {r} {c}");
        }
        let line = lines[record.name.trim_end_matches(".weight")];
        assert_eq!((&line.meta.method, line.meta.note.as_deref()), (&record.method, Some("reconstructed")), "{key}");
        assert_eq!(line.meta.output_error, record.output_error, "{key}");
        let Some(gain) = &layer.bias else { continue };
        let bias = key.replace(".weight", ".bias");
        let before = float.get(&bias).map_or_else(|| vec![0.0; gain.len()], |bias| bias.values.clone());
        let Some(bias) = got.get(&bias) else { continue };
        for (r, gain) in gain.iter().enumerate() {
            let expected = (f64::from(before[source(r)]) + f64::from(*gain)) as f32;
            assert_eq!(bias.values[source(r)], expected, "{key} {r}");
        }
        biases += 1;
    }
    biases
}

#[test]
fn what_is_packed_is_what_was_trained() {
    for (name, component, config, prompts) in [
        ("dit/d2", "transformer", "w3a16", Some("class 0\n3\n6\n")),
        ("sd/v1", "unet", "w4a8", Some("a cat\na dog\na cat on a dog\n")),
    ] {
        let scratch = Scratch::new("reconstruct");
        calibrated(&scratch, name, prompts);
        for (unit, learned) in
            [(Unit::Layer, Learned::Rounding), (Unit::Block, Learned::Rounding), (Unit::Block, Learned::Levels)]
        {
            let mut settings = settings(&scratch, name, config, unit);
            settings.learned = learned;
            if learned == Learned::Levels {
                settings.training.rate = 2e-3;
            }
            let report = reconstruct(&settings, &mut |_| true).unwrap();
            let what = format!("{name} {unit:?} {learned:?}");
            let units = &report.record.units;
            let better = units.iter().filter(|unit| unit.curve.end < unit.curve.begin).count();
            assert!(better * 10 >= units.len() * 8, "{what}: {better} of {}", units.len());
            assert_eq!(units.iter().map(|unit| unit.layers).sum::<usize>(), report.record.layers.len(), "{what}");
            assert_eq!(unit == Unit::Layer, units.len() == report.record.layers.len(), "{what}");
            let biases = assert_packed(&scratch, name, component, config, &settings.output);
            assert_eq!(biases > 0, unit == Unit::Layer || learned == Learned::Levels, "{what}");
            assert!(!scratch.entries().iter().any(|entry| entry.contains("partial") || entry.contains("f32")));
        }
    }
}

#[test]
fn codebooks_are_trained_for_the_codes_of_error_feedback() {
    let scratch = Scratch::new("levels");
    calibrated(&scratch, "dit/d2", None);
    for config in ["w2a16:kmeans", "w3a8:kmeans_all", "w3a16:lloyd"] {
        let mut settings = settings(&scratch, "dit/d2", config, Unit::Block);
        settings.learned = Learned::Levels;
        settings.training = Training { iterations: 80, rate: 2e-3, ..settings.training };
        let report = reconstruct(&settings, &mut |_| true).unwrap();
        for unit in &report.record.units {
            assert!(unit.curve.end <= 1.001 * unit.curve.begin, "{config} {}: {:?}", unit.name, unit.curve);
        }
        let sum = |of: fn(&packer::reconstruct::Curve) -> f64| {
            report.record.units.iter().map(|unit| of(&unit.curve).ln()).sum::<f64>()
        };
        assert!(sum(|curve| curve.end) < sum(|curve| curve.begin) - 0.1, "{config}");
        assert_packed(&scratch, "dit/d2", "transformer", config, &settings.output);
        // Codes are those that packing with a calibration chooses.
        let options = Options {
            model: fixture("dit/d2"),
            q_config: Some(all_layers(&scratch, config)),
            calibration: Some(settings.calibration.clone()),
            output: scratch.path("c.aqt"),
            ..Options::default()
        };
        let plain = pack(&options, &mut |_| ()).unwrap();
        let trained = import(&scratch, "dit/d2", config, &settings.output).unwrap();
        assert_eq!(plain.layers.len(), trained.layers.len());
        let moved = plain.layers.iter().zip(&trained.layers).filter(|(a, b)| a.meta.error != b.meta.error).count();
        assert!(moved >= report.record.layers.len() / 2, "{config}: {moved}");
    }
}

#[test]
fn work_that_ended_is_gone_on_with_to_the_same_bytes() {
    let scratch = Scratch::new("resumed");
    calibrated(&scratch, "dit/d2", None);
    for unit in [Unit::Layer, Unit::Block] {
        let mut settings = settings(&scratch, "dit/d2", "w3a16", unit);
        settings.training.iterations = 10;
        reconstruct(&settings, &mut |_| true).unwrap();
        let whole = fs::read(&settings.output).unwrap();
        fs::remove_file(&settings.output).unwrap();
        let mut done = 0;
        let error = reconstruct(&settings, &mut |event| {
            done += usize::from(matches!(event, Event::Done(_)));
            done < 3 || !matches!(event, Event::Iteration(..))
        });
        assert!(error.unwrap_err().to_string().contains("the same command goes on with it"));
        assert!(!settings.output.exists());
        // Another command is told of it, and changes nothing.
        let other = Settings { training: Training { iterations: 11, ..settings.training }, ..settings.clone() };
        let told = reconstruct(&other, &mut |_| true).unwrap_err().to_string();
        assert!(told.contains("expected the work of this command") && told.contains("other settings"), "{told}");
        let (mut resumed, mut again) = (false, 0);
        reconstruct(&settings, &mut |event| {
            resumed |= matches!(event, Event::Resumed(_));
            again += usize::from(matches!(event, Event::Done(_)));
            true
        })
        .unwrap();
        let units = Reconstruction::open(&settings.output).unwrap().unwrap().record().units.len();
        assert!(resumed && again == units - 3, "{again} of {units}");
        assert_eq!(fs::read(&settings.output).unwrap(), whole);
        fs::remove_file(&settings.output).unwrap();
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let scratch = Scratch::new("threads");
    let calibration = calibrated(&scratch, "dit/d3odd", None);
    let files = ["1", "2", "5"].map(|threads| {
        let output = scratch.path(&format!("{threads}.safetensors"));
        let done = Command::new(env!("CARGO_BIN_EXE_packer"))
            .args(["reconstruct", fixture("dit/d3odd").to_str().unwrap(), "--q-config", "w3a16", "--iters", "8"])
            .args(["--calib", calibration.to_str().unwrap(), "--samples", "10", "-o", output.to_str().unwrap()])
            .args(["--plot", scratch.path("p.svg").to_str().unwrap()])
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        let (out, error) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
        assert!(done.status.success() && error.contains("loss"), "{error}");
        assert!(out.contains("10 samples") && out.contains("transformer_blocks.0"), "{out}");
        fs::read(output).unwrap()
    });
    assert!(files[0] == files[1] && files[1] == files[2]);
    let svg = fs::read_to_string(scratch.path("p.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("transformer_blocks.0"));
}

#[test]
fn what_cannot_be_done_is_told_in_a_line() {
    let scratch = Scratch::new("refused");
    calibrated(&scratch, "dit/d2", None);
    let told = |settings: &Settings| reconstruct(settings, &mut |_| true).unwrap_err().to_string();
    let plain = settings(&scratch, "dit/d2", "w3a16", Unit::Block);
    let with = |change: &dyn Fn(&mut Settings)| {
        let mut settings = plain.clone();
        change(&mut settings);
        told(&settings)
    };
    for (told, expected) in [
        (with(&|s| s.q_config = "w3a16:kmeans".into()), "expected uniform levels, such as w4a8"),
        (with(&|s| s.q_config = "f16".into()), "expected a configuration that makes codes of layers of the denoiser"),
        (with(&|s| s.training.iterations = 0), "iters: expected at least 1, got 0"),
        (with(&|s| s.training.rate = -1.0), "lr: expected a positive number"),
        (with(&|s| s.memory = 100), "--memory: expected at least"),
        (with(&|s| (s.unit, s.learned) = (Unit::Layer, Learned::Levels)), "expected --unit block"),
        (with(&|s| s.model = fixture("dit/d3odd")), "expected one of"),
    ] {
        assert!(told.contains(expected) && told.lines().count() == 1, "{told}");
    }
    assert!(scratch.entries().iter().all(|entry| !entry.starts_with("r.safetensors")), "{:?}", scratch.entries());

    let few = Settings { training: Training { iterations: 2, ..plain.training }, unit: Unit::Layer, ..plain };
    reconstruct(&few, &mut |_| true).unwrap();
    let refused = |name: &str, config: &str, file: &Path| {
        let error = import(&scratch, name, config, file).unwrap_err().to_string();
        assert!(error.lines().count() == 1 && !scratch.path("m.aqt").exists(), "{error}");
        error
    };
    let other = refused("dit/d2", "w4a16", &few.output);
    assert!(other.contains("for mse-4; packer reconstruct makes it, got one for mse-3"), "{other}");
    let other = refused("dit/d3odd", "w3a16", &few.output);
    assert!(other.contains("expected a reconstruction of"), "{other}");
    // Codes that are none, in the first layer.
    let mut bytes = fs::read(&few.output).unwrap();
    let first = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[first] = 200;
    fs::write(scratch.path("bad.safetensors"), &bytes).unwrap();
    let bad = refused("dit/d2", "w3a16", &scratch.path("bad.safetensors"));
    assert!(bad.contains("expected codes below 8, got 200"), "{bad}");
}
