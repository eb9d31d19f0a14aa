//! Reconstruction of whole models: that what is packed is what was trained, and that nothing but the settings decides about it.

use crate::common::{Scratch, fixture, load, pack_as};
use aquatint::options::SamplingOptions;
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::program::{CurveAxis, Op, QuantizeRange, RangeCurve, Role};
use packer::calibrate::{self, calibrate};
use packer::emit::{ActivationRanges, Options, RangeSource, Report, pack};
use packer::pass::Split;
use packer::quantize::RangeRule;
use packer::reconstruct::{
    Activations, Event, Learned, Reconstruction, Settings, StepTraining, Training, Unit, reconstruct,
};
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
        // Taps of a convolution, and values and gates of a gated layer, lie in another order in the file, and halves of a layer
        // side by side.
        let whole = &got[&key.replace(".weight_quantizer_0", "")];
        let inner: usize = whole.shape.get(2..).map_or(1, |taps| taps.iter().product());
        let (all, own) = (whole.shape[1], matrix.cols / inner);
        let first = if key.contains("_quantizer_0") { all - own } else { 0 };
        let interleaved = key.ends_with("ff.net.0.proj.weight") && component == "unet";
        let source = |r: usize| if interleaved { r / 2 + r % 2 * (matrix.rows / 2) } else { r };
        for (r, c) in (0..matrix.rows).flat_map(|r| (0..matrix.cols).map(move |c| (r, c))) {
            let (tap, channel) = (c / own, first + c % own);
            let value = whole.values[(source(r) * all + channel) * inner + tap];
            assert_eq!(value, matrix.weight(r, c), "{key} {r} {c}");
        }
        let line = lines[record.name.trim_end_matches(".weight")];
        assert_eq!((&line.meta.method, line.meta.note.as_deref()), (&record.method, Some("reconstructed")), "{key}");
        assert_eq!(line.meta.output_error, record.output_error, "{key}");
        let Some(gain) = &layer.bias else { continue };
        let bias = format!("{}.bias", key.trim_end_matches(".weight"));
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
fn halves_of_split_layers_are_trained_for_their_sum() {
    let scratch = Scratch::new("halves");
    calibrated(&scratch, "sd/v1", Some("a cat\na dog\na cat on a dog\n"));
    for unit in [Unit::Layer, Unit::Block] {
        let mut settings = settings(&scratch, "sd/v1", "w4a8", unit);
        settings.split = vec![Split::Shortcut, Split::Conv];
        settings.training.iterations = 30;
        let report = reconstruct(&settings, &mut |_| true).unwrap();
        let (units, layers) = (&report.record.units, &report.record.layers);
        assert_eq!(layers.iter().filter(|layer| layer.name.contains(".weight_quantizer_0")).count(), 12);
        if unit == Unit::Layer {
            assert_eq!(units.len(), layers.len() - 12);
            assert_eq!(units.iter().filter(|unit| unit.layers == 2).count(), 12);
        }
        let better = units.iter().filter(|unit| unit.curve.end < unit.curve.begin).count();
        assert!(better * 10 >= units.len() * 8, "{unit:?}: {better} of {}", units.len());
        // What is packed is split where the file's layers are.
        assert_packed(&scratch, "sd/v1", "unet", "w4a8", &settings.output);
    }
}

/// Points of the curves of ranges, by the names of the weights whose inputs they are of.
fn packed_ranges(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let packed = Packed::open(path).unwrap();
    let program = packed.program(Role::Denoiser).unwrap();
    let mut found = BTreeMap::new();
    for node in &program.nodes {
        let (weight, x) = match node.op {
            Op::Linear(op) => (op.weight, op.x),
            Op::GatedLinear(op) => (op.weight, op.x),
            Op::Conv2d(op) => (op.weight, op.x),
            _ => continue,
        };
        let codes = program.node_of(x).and_then(|x| program.nodes[x].op.quantizes());
        let Some(QuantizeRange::Curve(RangeCurve { points: curve, axis, .. })) = codes.map(|codes| codes.range) else {
            continue;
        };
        assert_eq!(axis, CurveAxis::StepFraction);
        let TensorView::F32(points) = packed.tensor(curve.0 as usize) else { panic!("floats") };
        found.insert(packed.tensors()[weight.0 as usize].name.clone(), points.to_vec());
    }
    found
}

#[test]
fn steps_of_activations_are_learned_and_packed() {
    let scratch = Scratch::new("activations");
    let calibration = calibrated(&scratch, "sd/v1", Some("a cat\na dog\na cat on a dog\n"));
    let training = StepTraining { iterations: 40, rate: 0.02 };
    let by_steps = ActivationRanges {
        rule: RangeRule::MinMax,
        intervals: 3,
        axis: CurveAxis::StepFraction,
        symmetric: false,
        momentum: None,
    };
    for (learned, ranges) in [(Learned::Rounding, Some(by_steps)), (Learned::Nothing, None)] {
        let mut settings = settings(&scratch, "sd/v1", "w4a6", Unit::Block);
        (settings.learned, settings.training.iterations) = (learned, 20);
        settings.activations = Some(Activations { ranges, training });
        settings.split = vec![Split::Shortcut];
        let report = reconstruct(&settings, &mut |_| true).unwrap();
        let curves: Vec<_> = report.record.units.iter().filter_map(|unit| unit.activations.as_ref()).collect();
        assert!(curves.len() > 10 && curves.iter().all(|curve| curve.end <= curve.begin && curve.points.len() == 40));
        // Less is lost than by extremes.
        let better = |by: f64| curves.iter().filter(|curve| curve.end < by * curve.begin).count();
        assert!(better(1.0) * 10 >= curves.len() * 7, "{} of {}", better(1.0), curves.len());
        assert!(better(0.98) * 5 >= curves.len() * 2, "{} of {}", better(0.98), curves.len());
        let file = Reconstruction::open(&settings.output).unwrap().unwrap();
        let intervals = ranges.map_or(1, |ranges| ranges.intervals);
        assert_packed(&scratch, "sd/v1", "unet", "w4a6", &settings.output);
        let packed = packed_ranges(&scratch.path("m.aqt"));
        let mut halves = Vec::new();
        for record in &file.record().layers {
            let layer = file.layer(record).unwrap();
            let Some(points) = layer.activations else { continue };
            assert_eq!(points.len(), intervals);
            assert_eq!(packed[&record.name], points.concat(), "{}", record.name);
            if record.name.contains("resnets.0.conv_shortcut") && record.name.contains("up_blocks") {
                halves.push(points[0][1]);
            }
        }
        assert_eq!(packed.len(), file.record().layers.iter().filter(|layer| layer.activations.is_some()).count());
        assert!(halves.len() == 6 && halves.windows(2).all(|pair| pair[0] != pair[1]), "{halves:?}");
        // Whoever asks for other ranges gets them.
        let dynamic = Options {
            model: fixture("sd/v1"),
            q_config: Some(all_layers(&scratch, "w4a6")),
            import: Some(settings.output.clone()),
            activation_ranges: Some(RangeSource::Dynamic),
            output: scratch.path("d.aqt"),
            ..Options::default()
        };
        pack(&dynamic, &mut |_| ()).unwrap();
        assert!(packed_ranges(&dynamic.output).is_empty());
        let narrow = Options { activation_bits: Some(8), activation_ranges: None, ..dynamic.clone() };
        let error = pack(&narrow, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("activations of unet/") && error.contains("expected 8 bits, got 6"), "{error}");
        if learned == Learned::Nothing {
            // Weights are those of packing with the calibration.
            let plain = Options {
                import: None,
                calibration: Some(calibration.clone()),
                split: vec![Split::Shortcut],
                ..dynamic
            };
            let by_name = |report: Report| -> BTreeMap<String, f64> {
                report.layers.into_iter().map(|line| (line.meta.name, line.meta.error)).collect()
            };
            let plain = by_name(pack(&plain, &mut |_| ()).unwrap());
            let own = by_name(import(&scratch, "sd/v1", "w4a6", &settings.output).unwrap());
            for record in &file.record().layers {
                let name = record.name.trim_end_matches(".weight");
                assert!((plain[name] - own[name]).abs() <= 1e-9 + 1e-6 * plain[name], "{name}");
            }
        }
    }
    // Layers that stay in floats are in blocks beside those that do not.
    let mut some = settings(&scratch, "sd/v1", "w4a6", Unit::Block);
    (some.training.iterations, some.activations) = (2, Some(Activations { ranges: Some(by_steps), training }));
    fs::write(&some.q_config, r#"{"*": "w4a6", "*.conv1": "f16", "*.to_k": "f16", "conv_in": "f16"}"#).unwrap();
    let report = reconstruct(&some, &mut |_| true).unwrap();
    assert!(report.record.units.iter().filter(|unit| unit.activations.is_some()).count() > 10);
    assert!(report.record.layers.iter().all(|layer| !layer.name.ends_with("conv1.weight")));
    let told = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings(&scratch, "sd/v1", "w4a8", Unit::Block);
        settings.activations = Some(Activations { ranges: Some(by_steps), training });
        change(&mut settings);
        let told = reconstruct(&settings, &mut |_| true).unwrap_err().to_string();
        assert_eq!(told.lines().count(), 1);
        told
    };
    for (told, expected) in [
        (
            told(&|s| s.q_config = "w4a16".into()),
            "--learn activations: expected a configuration with integer activations",
        ),
        (told(&|s| s.unit = Unit::Layer), "--learn activations: expected --unit block"),
        (told(&|s| s.activations.as_mut().unwrap().training.iterations = 0), "act-iters: expected at least 1"),
        (told(&|s| s.activations.as_mut().unwrap().training.rate = 0.0), "act-lr: expected a positive number"),
        (
            told(&|s| {
                s.activations =
                    Some(Activations { ranges: Some(ActivationRanges { intervals: 4, ..by_steps }), training })
            }),
            "--act-intervals: expected 1 to 3",
        ),
        (told(&|s| (s.learned, s.activations) = (Learned::Nothing, None)), "--learn: expected rounding, levels or"),
    ] {
        assert!(told.contains(expected), "{told}");
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
    let training = StepTraining { iterations: 10, rate: 0.02 };
    let steps = Some(Activations { ranges: None, training });
    for (unit, config, activations) in
        [(Unit::Layer, "w3a16", None), (Unit::Block, "w3a16", None), (Unit::Block, "w3a8", steps)]
    {
        let mut settings = settings(&scratch, "dit/d2", config, unit);
        (settings.training.iterations, settings.activations) = (10, activations);
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
