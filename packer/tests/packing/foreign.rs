//! Configuration files of other projects: what their own code makes of them is what is made here.

use crate::common::{Scratch, fixture};
use aquatint::options::SamplingOptions;
use aquatint::raw::format::Packed;
use aquatint::raw::program::{CurveAxis, Op, QuantizeRange};
use packer::calibrate::{Settings, calibrate};
use packer::config::{ActivationRanges, LayerSpec, QConfig};
use packer::emit::{Options, RangeSource, explain, pack};
use packer::quantize::{BINS, MovingRange, RangeRule, SeenRange, bin};
use serde_json::Value;
use std::fs;

const COURSE: &str = "
EXP_NAME: a name
MODEL: TimeStepCalibratedQuantModel
SEED: 42
QUANTISATION_PARAMS:
  WEIGHT_QUANT_PARAMS: {n_bits: 8}
  ACT_QUANT_PARAMS: {n_bits: 8}
  K: 3
  QUANT_FILTERS: @
  USE_ACT_QUANT: true
  USE_WEIGHT_QUANT: true
CALIBRATION_PARAMS: {ACT_SCALE_POLICY: max, ACT_UPDATE_POLICY: momentum, NUM_CALIBRATION_SAMPLES: 10, USE_CALIBRATION: true}
GENERATION_PARAMS: {CFG_SCALE: 8, NUM_INFERENCE_STEPS: 40}
TEST_PARAMS: {NUM_TEST_SAMPLES: 10}
";

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

fn parse(scratch: &Scratch, text: &str) -> Result<QConfig, String> {
    let path = scratch.path("config.yaml");
    fs::write(&path, text).unwrap();
    QConfig::from_file(&path).map_err(|e| e.to_string())
}

fn specs(config: &QConfig, layers: &[&str]) -> Vec<String> {
    config.resolve(layers, &[]).unwrap().iter().map(|choice: &packer::config::Choice| choice.spec.to_string()).collect()
}

#[test]
fn the_courses_filters_leave_alone_what_its_own_code_does() {
    let (scratch, known) = (Scratch::new("course"), json("course.json"));
    let layers: Vec<&str> = known["layers"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    assert_eq!(layers.len(), 282);
    let single = known["kept"].as_object().unwrap().iter().map(|(filter, kept)| (format!("['{filter}']"), kept));
    let presets = known["presets"].as_object().unwrap().values().map(|p| (p["filters"].to_string(), &p["kept"]));
    let mut some = 0;
    for (filters, kept) in single.chain(presets) {
        let config = parse(&scratch, &COURSE.replace("@", &filters)).unwrap();
        let floats =
            specs(&config, &layers).iter().enumerate().filter(|(_, s)| *s == "f16").map(|(i, _)| i).collect::<Vec<_>>();
        let kept: Vec<usize> = kept.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as usize).collect();
        assert_eq!(floats, kept, "{filters}");
        some += usize::from(!kept.is_empty());
        let idle = config.notes(&layers).iter().any(|note| note.contains("matches no layer"));
        assert_eq!(idle, filters == "['x']", "{filters}: {:?}", config.notes(&layers));
    }
    assert!(some > 30);
}

#[test]
fn the_courses_parameters_become_rules_widths_and_ranges() {
    let scratch = Scratch::new("course");
    let layers = ["conv_in", "conv_out"];
    let base = COURSE.replace("@", "[final]");
    let config = parse(&scratch, &base).unwrap();
    assert_eq!(specs(&config, &layers), ["w8a8:sym_max", "f16"]);
    let ranges = ActivationRanges {
        rule: RangeRule::MinMax,
        intervals: 3,
        axis: CurveAxis::StepFraction,
        symmetric: true,
        momentum: Some(90),
    };
    assert_eq!(config.activation_ranges(), Some(ranges));
    let with = |pairs: &[(&str, &str)]| {
        let text = pairs.iter().fold(base.clone(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        parse(&scratch, &text)
    };
    let mse = with(&[("ACT_SCALE_POLICY: max", "ACT_SCALE_POLICY: mse"), ("momentum", "maximum")]).unwrap();
    assert_eq!(mse.activation_ranges(), Some(ActivationRanges { rule: RangeRule::Mse, momentum: None, ..ranges }));
    let whole = with(&[("TimeStepCalibratedQuantModel", "QuantModel")]).unwrap();
    assert_eq!(whole.activation_ranges(), Some(ActivationRanges { intervals: 1, ..ranges }));
    assert!(whole.notes(&layers).iter().any(|n| n.contains("one step per tensor")), "the known fault is named");
    assert!(config.notes(&layers).iter().all(|n| !n.contains("one step per tensor")), "only where it is");
    let weights =
        with(&[("USE_ACT_QUANT: true", "USE_ACT_QUANT: false"), ("{n_bits: 8}", "{n_bits: 5, scale_method: mse}")]);
    let weights = weights.unwrap();
    assert_eq!((specs(&weights, &layers[..1]), weights.activation_ranges()), (vec!["w5a16:sym_mse".to_owned()], None));
    for (pairs, expected) in [
        (&[("n_bits: 8", "n_bits: 7")][..], "`QUANTISATION_PARAMS.WEIGHT_QUANT_PARAMS.n_bits`"),
        (&[("n_bits: 8", "n_bits: many")], "must be a whole number, got `many`"),
        (&[("K: 3", "K: 0")], "`QUANTISATION_PARAMS.K` must be 1 or more, got 0"),
        (&[("K: 3", "KK: 3")], "`QUANTISATION_PARAMS.KK` is not known"),
        (&[("SEED", "SEEDS")], "`SEEDS` is not known"),
        (&[("[final]", "{a: 1}")], "must be a list of texts, got a map"),
        (&[("[final]", "[final, 3]")], "must be a list of texts, got 3"),
        (&[("[final]", &*format!("[{}final]", "final, ".repeat(1000)))], "must have at most 1000 texts, got 1001"),
        (&[("momentum", "median")], "must be momentum or maximum, got `median`"),
        (&[("USE_WEIGHT_QUANT: true", "USE_WEIGHT_QUANT: 'no'")], "must be true or false, got `no`"),
        (&[("USE_WEIGHT_QUANT: true", "USE_WEIGHT_QUANT: false")], "activations alone are not quantized"),
        (&[("MODEL: TimeStep", "MODEL: Time")], "must be QuantModel or TimeStepCalibratedQuantModel"),
    ] {
        let fault = with(pairs).unwrap_err();
        assert!(fault.contains(expected) && fault.lines().count() == 1 && fault.len() < 500, "{expected}: {fault}");
    }
}

#[test]
fn ranges_move_as_the_projects_move_them() {
    for case in json("ema.json").as_array().unwrap() {
        let bits = case["bits"].as_u64().unwrap() as u8;
        let course = case["kind"] == "course";
        let mut range = MovingRange::new(RangeRule::MinMax, bits, course, Some(if course { 90 } else { 95 }));
        for call in case["calls"].as_array().unwrap() {
            let values: Vec<f32> = call.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
            let mut bins = [0; BINS];
            values.iter().for_each(|&v| bins[bin(v)] += 1);
            let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
            range.see(&SeenRange { low, high, bins });
        }
        let (scale, zero) = range.scale_and_zero().unwrap();
        let [want, center] = ["delta", "zero"].map(|key| case[key].as_f64().unwrap());
        // Theirs is worked out in f32, a few roundings per call.
        assert!((f64::from(scale) - want).abs() < 2e-6 * want, "{scale} {want}");
        assert!((f64::from(zero) - center).abs() < 0.5, "{zero} {center}");
    }
    assert_eq!(MovingRange::new(RangeRule::Mse, 8, false, Some(95)).scale_and_zero(), None);
}

/// A calibration of a DiT with random weights: 3 of the 6 calls of a run.
fn calibrated(scratch: &Scratch) -> std::path::PathBuf {
    let mut settings = Settings::new(fixture("dit/d2"), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(6), cfg_scale: Some(3.0), ..Default::default() };
    (settings.images, settings.calls) = (3, 3);
    calibrate(&settings, &mut |_| true).unwrap();
    settings.output
}

#[test]
fn a_files_ranges_take_effect_and_flags_win() {
    let scratch = Scratch::new("course-ranges");
    let config = scratch.path("config.yaml");
    fs::write(&config, COURSE.replace("@", "[]")).unwrap();
    let mut options = Options {
        model: fixture("dit/d2"),
        q_config: Some(config.display().to_string()),
        calibration: Some(calibrated(&scratch)),
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    let curves = |options: &Options| {
        let report = pack(options, &mut |_| ()).unwrap();
        let packed = Packed::open(&options.output).unwrap();
        let quantized = |op: &Op| op.quantizes().is_some_and(|q| matches!(q.range, QuantizeRange::Curve(..)));
        let count = packed.programs().iter().flat_map(|p| &p.nodes).filter(|node| quantized(&node.op)).count();
        let dims: Vec<_> =
            packed.tensors().iter().filter(|t| t.name.ends_with("activation_range")).map(|t| t.dims.to_vec()).collect();
        (count, dims, packed.meta().quantization.config.clone(), report.notes)
    };
    let (count, dims, words, notes) = curves(&options);
    assert!(count > 8 && dims.iter().all(|d| d[..] == [3, 3]), "{count} {dims:?}");
    assert!(
        words.ends_with("symmetric ranges by min-max averaged over calls with momentum 0.90 over 3 intervals of steps"),
        "{words}"
    );
    assert!(notes.iter().any(|note| note.contains("ranges of activations come from --calib")), "{notes:?}");
    let plan = explain(&options).unwrap();
    assert_eq!(plan.notes, notes);
    let denoiser: Vec<_> = plan.layers.iter().filter(|l| l.name.starts_with("transformer/")).collect();
    assert!(denoiser.len() > 16 && denoiser.iter().all(|l| l.method == "sym_max-8" && l.activation_bits == 8));
    let rule = denoiser[0].range.clone().unwrap();
    assert!(
        rule.contains("by min-max") && rule.contains("intervals of steps") && rule.ends_with(" of --calib"),
        "{rule}"
    );
    assert!(plan.layers.iter().filter(|l| l.activation_bits == 32).all(|l| l.range.is_none()));
    let own = Options { q_config: Some("w8a8".into()), ..options.clone() };
    let own = explain(&own).unwrap().layers;
    let coded = || own.iter().filter(|l| l.activation_bits == 8);
    assert!(coded().count() > 0 && coded().all(|l| l.range.as_deref() == Some("each row's own, while running")));

    options.activation_ranges = Some(RangeSource::Dynamic);
    assert_eq!(curves(&options).0, 0);
    let once = ActivationRanges {
        rule: RangeRule::Mse,
        intervals: 1,
        axis: CurveAxis::Timestep,
        symmetric: false,
        momentum: None,
    };
    options.activation_ranges = Some(RangeSource::Calibration(once));
    assert!(curves(&options).1.iter().all(|d| d[..] == [1, 3]));
    (options.activation_ranges, options.calibration) = (None, None);
    let fault = pack(&options, &mut |_| ()).unwrap_err().to_string();
    assert!(fault.starts_with("ranges that --q-config fixes: expected --calib FILE"), "{fault}");
}

const FIRST: &str = "
part_fp_list: 'remain_fp.txt'
model: {model_id: pixart, model_type: pixart}
conditional: True
mixed_precision: [4, 6, 8]
calib_data: {path: somewhere, n_steps: 10, batch_size: 4, n_samples: 10}
quant:
  weight:
    optimization:
    quantizer: {n_bits: 4, per_group: channel, scale_method: 'min_max', round_mode: 'nearest'}
  activation:
    quantizer:
      n_bits: 8
      per_group: token
      dynamic: True
      scale_method: min_max
      round_mode: nearest_ste
      running_stat: False
      sym: False
      smooth_quant: {enable: False, channel_wise_scale_type: momentum_act_max, momentum: 0.95, alpha: 0.3}
  grad_checkpoint: False
resume_with_w_quantized:
  path: None
";
const BLOCKS: [&str; 4] = ["x_embedder.proj", "blocks.0.attn.qkv", "blocks.11.mlp.fc1", "final_layer.linear"];

/// As `parse`, with some of `text` replaced.
fn changed(scratch: &Scratch, text: &str, pairs: &[(&str, &str)]) -> Result<QConfig, String> {
    let text = pairs.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    });
    parse(scratch, &text)
}

#[test]
fn viditqs_first_files_are_read() {
    let scratch = Scratch::new("viditq");
    fs::write(scratch.path("remain_fp.txt"), "x_embedder\nfinal_layer\n\nt_embedder\n").unwrap();
    let config = parse(&scratch, FIRST).unwrap();
    assert_eq!(specs(&config, &BLOCKS), ["f16", "w4a8:min_max", "w4a8:min_max", "f16"]);
    assert_eq!(config.activation_ranges(), None);
    let notes = config.notes(&BLOCKS);
    assert!(notes.iter().any(|n| n == "`t_embedder` matches no layer of this model"), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("token of a batch")), "{notes:?}");
    let with = |pairs: &[(&str, &str)]| changed(&scratch, FIRST, pairs);
    let fixed = with(&[("per_group: token", "per_group: False"), ("dynamic: True", "dynamic: False")]).unwrap();
    let ranges = fixed.activation_ranges().unwrap();
    assert_eq!((ranges.rule, ranges.intervals, ranges.symmetric, ranges.momentum), (RangeRule::MinMax, 1, false, None));
    let moving = with(&[
        ("per_group: token", "per_group: False"),
        ("dynamic: True", "dynamic: False"),
        ("running_stat: False", "running_stat: True"),
        ("sym: False", "sym: True"),
    ]);
    let ranges = moving.unwrap().activation_ranges().unwrap();
    assert_eq!((ranges.symmetric, ranges.momentum), (true, Some(95)));
    let wide = with(&[("n_bits: 8", "n_bits: 16"), ("'remain_fp.txt'", "''")]).unwrap();
    // Without a list, PixArt's floats are those of the project's scripts; the last layer is none of them.
    assert_eq!(specs(&wide, &BLOCKS), ["f16", "w4a16:min_max", "w4a16:min_max", "w4a16:min_max"]);
    // From elsewhere: beside the configuration.
    assert!(with(&[("'remain_fp.txt'", "'./t2v/configs/remain_fp.txt'")]).is_ok());
    // Read, and refused where it would have to be honoured.
    let smooth = with(&[
        ("enable: False", "enable: True"),
        ("alpha: 0.3", "alpha: [0.1, 0.2], timerange: [[0, 500], [501, 1000]]"),
    ]);
    let smooth = smooth.unwrap();
    assert_eq!(smooth.transforms().smooth[0].alphas, [(0.1, Some([0, 500])), (0.2, Some([501, 1000]))]);
    assert_eq!(specs(&smooth, &BLOCKS), specs(&with(&[]).unwrap(), &BLOCKS), "what is smoothed has the same bits");
    for (pairs, expected) in [
        (&[("n_bits: 4", "n_bits: 7")][..], "`quant.weight.quantizer.n_bits` is not packed: weight bits"),
        (&[("per_group: channel", "per_group: group")], "must be channel"),
        (&[("dynamic: True", "dynamic: False")], "must be false where dynamic is false"),
        (&[("sym: False", "symm: False")], "`quant.activation.quantizer.symm` is not known"),
        (&[("conditional: True", "timestep_wise: True")], "--act-intervals"),
        (&[("sym: False", "timestep_wise: True")], "`quant.activation.quantizer.timestep_wise` must be false"),
        (&[("'remain_fp.txt'", "'gone.txt'")], "names gone.txt, which is not there"),
        (
            &[("enable: False", "enable: True"), ("alpha: 0.3", "alpha: much")],
            "`quant.activation.quantizer.smooth_quant.alpha` must be numbers",
        ),
        (
            &[("enable: False", "enable: True"), ("alpha: 0.3", "alpha: 0.3, timerange: [[0, -1]]")],
            "as many [first, last]",
        ),
        (&[("model: {", "part_quant_list: a.pth\nmodel: {")], "`part_quant_list` is not known"),
    ] {
        let fault = with(pairs).unwrap_err();
        assert!(fault.contains(expected) && fault.lines().count() == 1 && fault.len() < 500, "{expected}: {fault}");
    }
    // No file elsewhere is read.
    let elsewhere = Scratch::new("viditq-elsewhere");
    fs::write(elsewhere.path("other.txt"), "x_embedder\n").unwrap();
    let name = elsewhere.0.file_name().unwrap().to_str().unwrap().to_owned();
    for path in [elsewhere.path("other.txt").display().to_string(), format!("../{name}/other.txt")] {
        let fault = with(&[("'remain_fp.txt'", &format!("'{path}'"))]).unwrap_err();
        assert!(fault.contains("which is not there nor beside"), "{fault}");
    }
    fs::write(scratch.path("remain_fp.txt"), "a\n".repeat(1001)).unwrap();
    assert!(parse(&scratch, FIRST).unwrap_err().contains("names a list of 1001 layers; at most 1000 are read"));
    fs::write(scratch.path("remain_fp.txt"), vec![0xffu8; 10]).unwrap();
    assert!(parse(&scratch, FIRST).unwrap_err().contains("must name a list of layers"));
    fs::write(scratch.path("remain_fp.txt"), vec![b'a'; (1 << 20) + 1]).unwrap();
    assert!(parse(&scratch, FIRST).unwrap_err().contains("at most 1048576 are read"));
}

const SECOND: &str = r"
model: {model_id: opensora}
remain_fp_regex: 'embedder|final'
mixed_precision:
  weight: {layer_name_regex: ['attn\.q', [], 'mlp']}
  act: {layer_name_regex: ['fc2']}
calib_data: {save_path: here}
weight: {n_bits: [4, 8], i_bitwidth: 0, sym: False}
act: {n_bits: 8, sym: True}
";

#[test]
fn viditqs_later_files_are_read() {
    let scratch = Scratch::new("viditq-later");
    let layers = ["x_embedder.proj", "blocks.0.attn.q", "blocks.0.attn.v", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"];
    let config = parse(&scratch, SECOND).unwrap();
    let expected = ["f16", "f16", "w4a8:min_max", "w8a8:min_max", "w8a16:min_max"];
    assert_eq!(specs(&config, &layers), expected);
    assert!(config.linear_only());
    let with = |pairs: &[(&str, &str)]| changed(&scratch, SECOND, pairs);
    let plain =
        with(&[("[4, 8], i_bitwidth: 0, sym: False", "8, sym: True"), ("['attn\\.q', [], 'mlp']", "[]")]).unwrap();
    assert_eq!(specs(&plain, &layers[2..]), ["w8a8:sym_max", "w8a8:sym_max", "w8a16:sym_max"]);
    for section in
        ["viditq: {alpha: 0.5, layer_name_regex: 'attn'}", "smooth_quant: {alpha: 1, layer_name_regex: 'attn'}"]
    {
        let config = with(&[("calib_data:", &format!("{section}\ncalib_data:"))]).unwrap();
        assert_eq!(config.transforms().smooth.len(), 1);
        assert_eq!(specs(&config, &layers), expected);
    }
    let rotated = with(&[("calib_data:", "quarot: {layer_name_regex: 'attn'}\ncalib_data:")]).unwrap();
    assert_eq!(
        (specs(&rotated, &layers), rotated.transforms().rotate.clone()),
        (expected.map(str::to_owned).to_vec(), vec!["attn".to_owned()])
    );
    for (pairs, expected) in [
        (&[("n_bits: [4, 8]", "n_bits: [4, 7]")][..], "`weight.n_bits` is not packed"),
        (&[("i_bitwidth: 0", "i_bitwidth: 2")], "`weight.i_bitwidth` must be the place"),
        (&[("i_bitwidth: 0", "i_bitwidth: -1")], "`weight.i_bitwidth` must be the place"),
        (&[("'mlp'", "'mlp', 'a', 'b'")], "for floats and 2 widths, got 5"),
        (&[("'mlp'", "'(mlp'")], "`mixed_precision` has `(mlp`, which is no regular expression here"),
        (&[("'embedder|final'", "'(?<!x)a'")], "`remain_fp_regex` has `(?<!x)a`, which is no regular expression here"),
        (&[("'embedder|final'", "'((a{100}){100}){100}'")], "is no regular expression here"),
        (&[("model:", "models:")], "`models` is not known"),
    ] {
        let fault = with(pairs).unwrap_err();
        assert!(fault.contains(expected) && fault.lines().count() == 1 && fault.len() < 500, "{expected}: {fault}");
    }
}

#[test]
fn convolutions_stay_as_viditqs_later_code_has_them() {
    let scratch = Scratch::new("viditq-linear");
    let config = scratch.path("c.yaml");
    fs::write(&config, "weight: {n_bits: 4}\nact: {n_bits: 8}\n").unwrap();
    let options =
        Options { model: fixture("dit/d2"), q_config: Some(config.display().to_string()), ..Default::default() };
    let plan = explain(&options).unwrap();
    let method = |name: &str| &plan.layers.iter().find(|l| l.name.ends_with(name)).unwrap().method;
    assert_eq!([method("pos_embed.proj"), method("0.attn1.to_q")], ["f16", "min_max-4"]);
    assert!(plan.notes.iter().any(|n| n.contains("convolutions stay f16")));
}

#[test]
fn bits_by_step_become_phases() {
    let scratch = Scratch::new("steps");
    let text = "
19-15: {model.blocks.0.attn.q: 4, model.blocks.0.mlp.fc1: 8}
14-0: {model.blocks.0.mlp.fc1: 8, model.blocks.0.attn.q: 4}
fp_layers: {19-15: [fc1_, embedder], 14-0: [embedder, fc1_]}
";
    let layers = ["blocks.0.attn.q", "blocks.0.mlp.fc1", "x_embedder", "other"];
    let config = parse(&scratch, text).unwrap();
    assert_eq!(specs(&config, &layers), ["w4a16:min_max", "w8a16:min_max", "f16", "f16"]);
    let acts = config.clone().with_activations(packer::config::Activations::Int(8));
    assert_eq!(specs(&acts, &layers), ["w4a8:min_max", "w8a8:min_max", "f16", "f16"]);
    let with = |pairs: &[(&str, &str)]| changed(&scratch, text, pairs);
    let differ = with(&[("model.blocks.0.attn.q: 4}", "model.blocks.0.attn.q: 8}")]).unwrap();
    assert_eq!(differ.phases().starts(), [0.0, 0.25], "the step counted down from 19 that 14 is");
    let phases = differ.resolve_phases(&layers, &[]).unwrap();
    let of_phase = |phase: &Vec<packer::config::Choice>| phase.iter().map(|c| c.spec.to_string()).collect::<Vec<_>>();
    let expected = |q: &str| [q, "w8a16:min_max", "f16", "f16"].map(str::to_owned);
    assert_eq!([0, 1].map(|p| of_phase(&phases[p])), [expected("w4a16:min_max"), expected("w8a16:min_max")]);
    let acts = differ.with_activations(packer::config::Activations::Int(8)).resolve_phases(&layers, &[]).unwrap();
    assert_eq!(of_phase(&acts[1])[..2], ["w8a8:min_max", "w8a8:min_max"]);
    assert!(config.phases().later.is_empty(), "ranges that agree are none");
    for (pairs, expected) in [
        (&[("14-0: {model", "13-14: {model")][..], "`13-14` is not known; expected ranges"),
        (&[("attn.q: 4,", "attn.q: four,")], "`19-15.model.blocks.0.attn.q` must be bits"),
        (&[("attn.q: 4,", "attn.q: 7,")], "is not packed: weight bits"),
        (&[("14-0: [", "9-0: [")], "`fp_layers.9-0` is no range of steps"),
        (&[("14-0: {model.blocks.0.mlp.fc1: 8, model.blocks.0.attn.q: 4}", "14-0: 8")], "`14-0` must be a map"),
        (&[("14-0: ", "14-1: ")], "`14-1` must end where the next range begins"),
        (&[("14-0: ", "12-0: ")], "`19-15` must end where the next range begins"),
        (&[("14-0: ", "16-0: ")], "`19-15` must end where the next range begins"),
    ] {
        let fault = with(pairs).unwrap_err();
        assert!(fault.contains(expected) && fault.lines().count() == 1, "{expected}: {fault}");
    }
}

#[test]
fn one_of_several_is_not_asked_for_of_a_projects_file() {
    let scratch = Scratch::new("foreign-one");
    let path = scratch.path("c.yaml");
    fs::write(&path, COURSE.replace("@", "[]")).unwrap();
    let fault = QConfig::parse(&format!("{}:best", path.display())).unwrap_err().to_string();
    assert!(fault.contains("this is one configuration"), "{fault}");
    let spec: LayerSpec = QConfig::parse("w4a8").unwrap().default().unwrap();
    assert_eq!(spec.to_string(), "w4a8:mse");
}
