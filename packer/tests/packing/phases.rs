//! Layers that have other weights and activations in other stretches of a run.

use crate::common::{Scratch, fixture, load_component};
use aquatint::options::SamplingOptions;
use aquatint::raw::backend::cpu::{Cpu, simd::scalar::Scalar};
use aquatint::raw::exec::{Executor, Moment};
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{CurveAxis, Dims, Role};
use packer::calibrate::{Calibration, Settings, calibrate};
use packer::emit::{ActivationRanges, Layers, Options, RangeSource, Report, pack};
use packer::quantize::RangeRule;
use std::path::Path;

const CALLS: usize = 8;

fn options(scratch: &Scratch, config: &str, calibrated: bool, name: &str) -> Options {
    let file = scratch.path(&format!("{name}.toml"));
    std::fs::write(&file, config).unwrap();
    Options {
        model: fixture("dit/d2"),
        q_config: Some(file.display().to_string()),
        calibration: calibrated.then(|| scratch.path("c.safetensors")),
        output: scratch.path(&format!("{name}.aqt")),
        ..Default::default()
    }
}

fn packed(scratch: &Scratch, config: &str, calibrated: bool, name: &str) -> Report {
    pack(&options(scratch, config, calibrated, name), &mut |_| ()).unwrap()
}

fn rotated(scratch: &Scratch, config: &str, (calibrated, rotated): (bool, bool), name: &str) {
    let rotation = rotated.then_some(Layers::All);
    pack(&Options { rotation, ..options(scratch, config, calibrated, name) }, &mut |_| ()).unwrap();
}

/// What the denoiser of a file makes of one input at each call of a run, calls in this order.
fn calls(path: &Path, order: &[usize]) -> Vec<Vec<u32>> {
    let file = Packed::open(path).unwrap();
    let cpu = Cpu::new(Scalar);
    let dims = Dims { batch: 2, conditions: 2, height: 4, width: 4, tokens: 1, ..Dims::ONE };
    let binding = Binding { dims, calls: CALLS, table_bytes: 1 << 20, reserve: 0 };
    let mut executor = Executor::new(&cpu, &file, Role::Denoiser, binding).unwrap();
    let moment = |i: usize| Moment { timestep: 999.0 - 125.0 * i as f32, fraction: i as f32 / CALLS as f32 };
    executor.set_moments((0..CALLS).map(moment)).unwrap();
    executor.set_class_labels(&[1, 2]).unwrap();
    let sample: Vec<f32> =
        (0..executor.sample().map_or(0, |_| 2 * 4 * 4 * 4)).map(|i| (i as f32 * 0.7).sin()).collect();
    executor.write_sample(&sample).unwrap();
    let call = |&call: &usize| {
        executor.call(call).unwrap();
        let mut out = vec![0.0; executor.plan().output_type.len()];
        executor.read_output(&mut out).unwrap();
        out.into_iter().map(f32::to_bits).collect()
    };
    order.iter().map(call).collect()
}

const FIRST: &str = r#"default = "f16"
[layers]
"*.attn1.*" = "w4a8"
"*.ff.*" = "w8a8"
"*.norm1.linear" = "w8a16"
"#;
/// What is other in the second phase, the third and the fourth. The third has weights of the second and activations of its own.
const LATER: [&str; 3] = [
    r#""*.ff.net.2" = "w4a8:kmeans"
"*.attn1.to_q" = "f16"
"*.norm1.linear" = "w4a16""#,
    r#""*.ff.net.2" = "w4a8:kmeans"
"*.attn1.to_k" = "w4a6"
"*.attn1.to_v" = "w2a8""#,
    r#""*.ff.net.0.proj" = "w8a6""#,
];

fn phased(starts: [&str; 3]) -> String {
    let phase = |(start, layers): (&str, &str)| format!("[[phases]]\n{start}\n[phases.layers]\n{layers}\n");
    FIRST.to_owned() + &starts.into_iter().zip(LATER).map(phase).collect::<String>()
}

/// The first phase's configuration with what a later one changes.
fn alone(later: usize) -> String {
    let names: Vec<&str> = LATER[later].lines().map(|line| line.split(" = ").next().unwrap()).collect();
    let kept = FIRST.lines().filter(|line| !names.iter().any(|name| line.starts_with(name)));
    kept.chain(LATER[later].lines()).collect::<Vec<_>>().join("\n")
}

fn calibration(scratch: &Scratch) {
    let mut settings = Settings::new(fixture("dit/d2"), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(6), cfg_scale: Some(3.0), ..Default::default() };
    (settings.images, settings.calls) = (3, 3);
    calibrate(&settings, &mut |_| true).unwrap();
}

/// Every call is, to the bit, that of a file in which its phase's precision holds all the time: weights, what biases take up of
/// their errors, and rotations of what becomes codes, which floats of another phase are spared.
#[test]
fn each_phase_is_as_if_packed_alone() {
    let scratch = Scratch::new("phases");
    calibration(&scratch);
    for how in [(false, false), (true, false), (false, true), (true, true)] {
        rotated(&scratch, &phased(["from = 0.25", "from = 0.5", "from = 0.75"]), how, "all");
        let all: Vec<usize> = (0..CALLS).collect();
        let mut single = Vec::new();
        for (phase, config) in [FIRST.to_owned(), alone(0), alone(1), alone(2)].into_iter().enumerate() {
            let name = format!("alone{phase}");
            rotated(&scratch, &config, how, &name);
            single.push(calls(&scratch.path(&format!("{name}.aqt")), &all));
        }
        assert!((1..4).all(|phase| single[phase] != single[0]), "phases matter");
        let order = [0, 1, 2, 3, 4, 5, 6, 7, 0, 5, 3];
        for (call, got) in order.into_iter().zip(calls(&scratch.path("all.aqt"), &order)) {
            assert!(got == single[call / 2][call], "call {call}, calibrated and rotated {how:?}");
        }
    }
}

#[test]
fn a_file_has_each_precision_of_a_weight_once_and_tells_of_it() {
    let scratch = Scratch::new("phases-file");
    let report =
        packed(&scratch, &phased(["from_timestep = 300", "from_timestep = 500", "from_timestep = 700.5"]), false, "m");
    let file = Packed::open(scratch.path("m.aqt")).unwrap();
    let program = file.program(Role::Denoiser).unwrap();
    assert_eq!((program.phases.axis, &program.phases.starts), (CurveAxis::Timestep, &vec![0.0, 300.0, 500.0, 700.5]));
    let again: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).filter(|n| n.contains(".phase_")).collect();
    let block = |n: usize, layer: &str| format!("transformer/transformer_blocks.{n}.{layer}.weight");
    // In order of phases; what the third has as the second is not stored again, and to_k has other activations only.
    let mut expected = Vec::new();
    for (layers, n) in
        [(&["norm1.linear.phase_1", "attn1.to_q.phase_1", "ff.net.2.phase_1"][..], 2), (&["attn1.to_v.phase_2"][..], 2)]
    {
        expected.extend((0..n).flat_map(|n| layers.iter().map(move |layer| block(n, layer))));
    }
    assert_eq!(again, expected);
    let told: Vec<_> = report.layers.iter().filter(|l| l.meta.name.contains(".phase_")).collect();
    assert_eq!(told.len(), again.len());
    assert!(told.iter().all(|line| line.meta.bytes > 0));
    let methods: Vec<&str> = told[..3].iter().map(|line| line.meta.method.as_str()).collect();
    assert_eq!(methods, ["mse-4", "f16", "kmeans-4"]);

    // What comes back is the first phase's.
    let (unpacked, plain) = (scratch.path("w.safetensors"), scratch.path("plain.safetensors"));
    packer::unpack::unpack(&scratch.path("m.aqt"), &unpacked, None, packer::weights::Float::F32).unwrap();
    packed(&scratch, FIRST, false, "plain");
    packer::unpack::unpack(&scratch.path("plain.aqt"), &plain, None, packer::weights::Float::F32).unwrap();
    assert_eq!(std::fs::read(unpacked).unwrap(), std::fs::read(plain).unwrap());
}

#[test]
fn a_model_with_phases_makes_pictures_and_batches_change_nothing() {
    use aquatint::pipeline::{Prompts, Request, Session};
    let scratch = Scratch::new("phases-run");
    packed(&scratch, &phased(["from = 0.2", "from = 0.4", "from = 0.9"]), false, "m");
    let file = Packed::open(scratch.path("m.aqt")).unwrap();
    let model = aquatint::Model::new(&file).unwrap();
    let cpu = Cpu::best();
    let run = |labels: Vec<u32>, batch: usize| {
        let mut request = Request::new(&model, Prompts::Classes(labels));
        (request.steps, request.batch_size) = (CALLS, batch);
        Session::new(&model, &cpu).run(request).unwrap().latents
    };
    let all = run(vec![0, 3, 1], 3);
    assert!(all.iter().all(|v| v.is_finite()));
    assert_eq!(all, run(vec![0, 3, 1], 2), "a second batch begins in the first phase again");
}

#[test]
fn what_phases_cannot_be_is_told() {
    let scratch = Scratch::new("phases-refused");
    calibration(&scratch);
    let phase = |text: &str| format!("{FIRST}{text}");
    for (config, expected) in [
        ("[[phases]]\n[phases.layers]\n\"*\" = \"f16\"\n", "phase 0 is expected to begin with one of `from`"),
        ("[[phases]]\nfrom = 1.0\ndefault = \"f16\"\n", "phase 0 is expected to begin after 0 and before 1, got 1"),
        ("[[phases]]\nfrom = 0\ndefault = \"f16\"\n", "phase 0 is expected to begin after 0 and before 1, got 0"),
        ("[[phases]]\nfrom = \"half\"\ndefault = \"f16\"\n", "phase 0 is expected to begin with one of"),
        ("[[phases]]\nfrom = 0.5\nfrom_timestep = 3\ndefault = \"f16\"\n", "got both"),
        ("[[phases]]\nfrom = 0.5\ndefault = \"f16\"\n[[phases]]\nfrom = 0.5\ndefault = \"f32\"\n", "begin after 0.5"),
        (
            "[[phases]]\nfrom = 0.5\ndefault = \"f16\"\n[[phases]]\nfrom_timestep = 600\ndefault = \"f32\"\n",
            "begin by step fraction",
        ),
        ("[[phases]]\nfrom = 0.5\n", "phase 0 is expected to change a layer"),
        ("[[phases]]\nfrom = 0.5\n[phases.layers]\n\"nothing\" = \"f16\"\n", "nothing"),
        ("[[phases]]\nfrom = 0.5\nlayers = { \"*\" = \"f16\" }\nmore = 3\n", "`more`"),
    ] {
        let options = options(&scratch, &phase(config), false, "m");
        let error = pack(&options, &mut |_| ()).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text += &format!(": {inner}");
            source = inner.source();
        }
        assert!(text.contains(expected), "{text}\n{config}");
        assert!(!options.output.exists());
    }
}

/// ViDiT-Q's first configuration with exponents by ranges of timesteps.
const TIMED: &str = "
quant:
  weight:
    quantizer: {n_bits: 8, per_group: channel, scale_method: 'min_max', round_mode: 'nearest'}
  activation:
    quantizer:
      n_bits: 8
      per_group: token
      dynamic: True
      scale_method: min_max
      sym: False
      smooth_quant: {enable: True, channel_wise_scale_type: momentum_act_max, alpha: [0.2, 0.7], timerange: RANGES}
smooth_quant_list: transformer_blocks.0.ff.net.2
";

/// Of inputs smoothed by ranges of timesteps, each has factors by its own exponent and extremes, and weights that undo them.
#[test]
fn smoothing_by_timerange_has_factors_and_weights_of_each_range() {
    let scratch = Scratch::new("phases-timed");
    calibration(&scratch);
    let options = |ranges: &str| {
        let file = scratch.path("timed.yaml");
        std::fs::write(&file, TIMED.replace("RANGES", ranges)).unwrap();
        Options {
            model: fixture("dit/d2"),
            q_config: Some(file.display().to_string()),
            calibration: Some(scratch.path("c.safetensors")),
            output: scratch.path("m.aqt"),
            ..Default::default()
        }
    };
    let report = pack(&options("[[0, 500], [501, 1000]]"), &mut |_| ()).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("by 2 ranges of timesteps")), "{:?}", report.notes);
    let file = Packed::open(scratch.path("m.aqt")).unwrap();
    let program = file.program(Role::Denoiser).unwrap();
    assert_eq!((program.phases.axis, &program.phases.starts[..]), (CurveAxis::Timestep, &[0.0, 501.0][..]));
    let layer = "transformer/transformer_blocks.0.ff.net.2";
    let floats = |name: String| {
        let index = file.tensors().iter().position(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
        let TensorView::F32(values) = file.tensor(index) else { panic!("floats") };
        values.to_vec()
    };
    let own = load_component(&fixture("dit/d2").join("transformer"));
    let weight = &own["transformer_blocks.0.ff.net.2.weight"].values;
    let calibration = Calibration::open(&scratch.path("c.safetensors")).unwrap();
    let inputs = &calibration.record().layers[&format!("{layer}.weight")];
    let (calls, _) = calibration.ranges(inputs).unwrap();
    for (name, alpha, within) in [("", 0.2, 0.0..501.0), (".phase_1", 0.7, 501.0..1001.0)] {
        let factors = floats(format!("{layer}{name}.input_factors"));
        assert!(calls.iter().any(|call| within.contains(&call.timestep)));
        for (channel, factor) in factors.iter().enumerate() {
            let own = calls.iter().filter(|call| within.contains(&call.timestep));
            let most = own.map(|call| call.low[channel].abs().max(call.high[channel].abs())).fold(0f32, f32::max);
            let column = weight.iter().skip(channel).step_by(factors.len()).fold(0f32, |most, w| most.max(w.abs()));
            let want = f64::from(most).powf(alpha) / f64::from(column).powf(1.0 - alpha);
            assert!((f64::from(*factor) / want - 1.0).abs() < 1e-6, "{channel}: {factor} {want}");
        }
    }
    // Calls in both ranges make something, each by its own weights.
    let all: Vec<usize> = (0..CALLS).collect();
    let timed = calls_of(&scratch, &all);
    for (alpha, which) in [("0.2", 4..CALLS), ("0.7", 0..4)] {
        let options = options("");
        let text = TIMED.replace("[0.2, 0.7]", alpha).replace(", timerange: RANGES", "");
        std::fs::write(scratch.path("timed.yaml"), text).unwrap();
        pack(&options, &mut |_| ()).unwrap();
        let one = calls_of(&scratch, &all);
        assert!(which.clone().all(|call| one[call] != timed[call]), "extremes of all times give other factors");
        let far = |call: usize| {
            let float = |bits: &u32| f64::from(f32::from_bits(*bits));
            let off: f64 = one[call].iter().zip(&timed[call]).map(|(a, b)| (float(a) - float(b)).powi(2)).sum();
            (off / one[call].iter().map(|a| float(a).powi(2)).sum::<f64>()).sqrt()
        };
        assert!(which.clone().all(|call| far(call) < 0.05), "{:?}", which.map(far).collect::<Vec<_>>());
    }
    for (ranges, told) in [
        ("[[0, 500], [502, 1000]]", "timerange of the configuration: expected one from 501 on, got [502, 1000]"),
        ("[[1, 500], [501, 1000]]", "expected one from 0 on, got [1, 500]"),
        ("[[0, 999], [1000, 1000]]", "expected calls in every range of timesteps; more of --cali-st look at more"),
    ] {
        let error = pack(&options(ranges), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

fn calls_of(scratch: &Scratch, order: &[usize]) -> Vec<Vec<u32>> {
    calls(&scratch.path("m.aqt"), order)
}

#[test]
fn average_bits_are_of_a_run_and_accounts_of_each_phase() {
    let scratch = Scratch::new("phases-bits");
    let bits = |config: &str, name: &str| {
        let report = packed(&scratch, config, false, name);
        let plan = packer::emit::explain(&options(&scratch, config, false, name)).unwrap();
        assert_eq!(report.average_bits, plan.average_bits);
        report.average_bits
    };
    let alone = [bits(FIRST, "first"), bits(&alone(0), "one"), bits(&alone(1), "two"), bits(&alone(2), "three")];
    let all = bits(&phased(["from = 0.25", "from = 0.5", "from = 0.875"]), "all");
    let want: f64 = alone.iter().zip([0.25, 0.25, 0.375, 0.125]).map(|(bits, share)| bits * share).sum();
    assert!((all - want).abs() < 1e-12 && alone[1] != alone[0], "{all} {alone:?}");
    let accounts = packer::account::accounts(&Packed::open(scratch.path("all.aqt")).unwrap()).unwrap();
    assert_eq!(
        accounts.iter().map(|a| (a.phase, a.share)).collect::<Vec<_>>(),
        [(0, 0.25), (1, 0.25), (2, 0.375), (3, 0.125)]
    );
    for (phase, account) in accounts.iter().enumerate() {
        assert_eq!(account.sizes[0].average_bits, alone[phase], "{phase}");
    }
    assert!(accounts[1].bit_operations != accounts[0].bit_operations);
    // By timestep a thousand of them are a run.
    let all = bits(&phased(["from_timestep = 250", "from_timestep = 500", "from_timestep = 875"]), "times");
    assert!((all - want).abs() < 1e-6, "{all} {want}");
}

/// Of several faults the first is told, whatever the order in which a map has layers.
#[test]
fn the_first_of_several_faults_is_told() {
    let scratch = Scratch::new("phases-order");
    calibration(&scratch);
    let config = "default = \"f16\"\n[layers]\n\"*.attn1.*\" = \"w8a8\"\n\"*.ff.*\" = \"w8a8\"\n[[phases]]\nfrom = \
                  0.5\n[phases.layers]\n\"*.attn1.*\" = \"w8a6\"\n\"*.ff.*\" = \"w8a6\"\n";
    let ranges = ActivationRanges {
        rule: RangeRule::MinMax,
        intervals: 1,
        axis: CurveAxis::StepFraction,
        symmetric: false,
        momentum: None,
    };
    let options = options(&scratch, config, true, "m");
    let options = Options { activation_ranges: Some(RangeSource::Calibration(ranges)), ..options };
    for _ in 0..8 {
        let error = pack(&options, &mut |_| ()).unwrap_err().to_string();
        assert!(error.starts_with("--act-range for transformer_blocks.0.attn1.to_q in phase 1: "), "{error}");
    }
}
