//! Ranges of activations that are fixed when packing.

use crate::common::{Scratch, fixture};
use aquatint::options::SamplingOptions;
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::program::{CurveAxis, Op, Quantize, QuantizeRange, RangeCurve, Role};
use packer::calibrate::{Calibration, Settings, calibrate};
use packer::emit::{ActivationRanges, Layers, Options, RangeSource, Smoothing, pack};
use packer::quantize::{RangeRule, SmoothRule};
use std::path::{Path, PathBuf};

const RULE: ActivationRanges = ActivationRanges {
    rule: RangeRule::MinMax,
    intervals: 3,
    axis: CurveAxis::StepFraction,
    symmetric: false,
    momentum: None,
};

/// A calibration of a DiT with random weights: 3 of the 6 calls of a run, guidance on.
fn calibration(scratch: &Scratch) -> PathBuf {
    let mut settings = Settings::new(fixture("dit/d2"), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(6), cfg_scale: Some(3.0), ..Default::default() };
    (settings.images, settings.calls) = (3, 3);
    calibrate(&settings, &mut |_| true).unwrap();
    settings.output
}

fn options(scratch: &Scratch, ranges: ActivationRanges) -> Options {
    // By name: layers with so few inputs keep f16 otherwise.
    let config = scratch.path("c.json");
    std::fs::write(&config, r#"{"default": "f16", "layers": {"*.attn1.*": "w8a8", "*.ff.*": "w8a8"}}"#).unwrap();
    Options {
        model: fixture("dit/d2"),
        q_config: Some(config.display().to_string()),
        calibration: Some(scratch.path("c.safetensors")),
        activation_ranges: Some(RangeSource::Calibration(ranges)),
        output: scratch.path("m.aqt"),
        ..Default::default()
    }
}

/// The least, then the greatest, of each channel of a layer's input at each call.
fn extremes(path: &Path, layer: &str) -> [Vec<Vec<f32>>; 2] {
    let input = Calibration::open(path).unwrap().record().layers[&format!("{layer}.weight")][0];
    let bytes = std::fs::read(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let range = tensors.tensor(&format!("inputs.{input}.range")).unwrap();
    let [2, calls, channels] = range.shape()[..] else { panic!("(2, calls, channels)") };
    let all: Vec<f32> = range.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let half = |of: &[f32]| of.chunks_exact(channels).map(<[f32]>::to_vec).collect();
    [half(&all[..calls * channels]), half(&all[calls * channels..])]
}

fn least(of: &[f32]) -> f32 {
    of.iter().copied().fold(f32::MAX, f32::min)
}

fn greatest(of: &[f32]) -> f32 {
    of.iter().copied().fold(f32::MIN, f32::max)
}

/// The curve of the input of the layer called so.
fn curve(packed: &Packed<aquatint::raw::mmap::FileBytes>, layer: &str) -> Vec<f32> {
    let index = packed.tensors().iter().position(|t| t.name == format!("{layer}.activation_range")).unwrap();
    let TensorView::F32(points) = packed.tensor(index) else { panic!("floats") };
    points.to_vec()
}

#[test]
fn curves_are_the_extremes_of_each_interval() {
    let scratch = Scratch::new("ranges");
    let path = calibration(&scratch);
    let file = Calibration::open(&path).unwrap();
    assert_eq!(file.record().run.chosen, [1, 3, 5]);
    let layer = "transformer/transformer_blocks.0.ff.net.2";
    let [low, high] = extremes(&path, layer);
    let calls: Vec<f32> = low.iter().map(|c| least(c)).chain(high.iter().map(|c| greatest(c))).collect();
    assert_eq!(calls.len(), 6, "the least of each call, then the greatest");
    let affine = |low: f32, high: f32| {
        let scale = (f64::from(high) - f64::from(low)) / 255.0;
        [scale as f32, (-f64::from(low) / scale).round_ties_even() as f32]
    };

    // Each of 6 calls in intervals of two: one that was looked at in each.
    pack(&options(&scratch, RULE), &mut |_| ()).unwrap();
    let got = curve(&Packed::open(scratch.path("m.aqt")).unwrap(), layer);
    let expected: Vec<f32> =
        (0..3).flat_map(|i| [&[i as f32 / 3.0][..], &affine(calls[i], calls[3 + i])].concat()).collect();
    assert_eq!(got, expected);

    // One for all; symmetric; and by timestep, of which the first half of the run has the large ones.
    let once = ActivationRanges { intervals: 1, ..RULE };
    pack(&options(&scratch, once), &mut |_| ()).unwrap();
    let got = curve(&Packed::open(scratch.path("m.aqt")).unwrap(), layer);
    assert_eq!(got, [&[0.0][..], &affine(least(&calls[..3]), greatest(&calls[3..]))].concat());
    pack(&options(&scratch, ActivationRanges { symmetric: true, ..once }), &mut |_| ()).unwrap();
    let got = curve(&Packed::open(scratch.path("m.aqt")).unwrap(), layer);
    assert_eq!(got, [0.0, greatest(&calls[3..]).max(-least(&calls[..3])) / 127.0, 128.0]);
    pack(&options(&scratch, ActivationRanges { axis: CurveAxis::Timestep, intervals: 2, ..RULE }), &mut |_| ())
        .unwrap();
    let got = curve(&Packed::open(scratch.path("m.aqt")).unwrap(), layer);
    let timesteps: Vec<f32> = file.record().run.chosen.iter().map(|&c| file.record().run.calls[c].timestep).collect();
    let half = |late: bool| {
        let of: Vec<usize> = (0..3).filter(|&i| (timesteps[i] >= 500.0) == late).collect();
        let (low, high): (Vec<f32>, Vec<f32>) = of.iter().map(|&i| (calls[i], calls[3 + i])).unzip();
        affine(least(&low), greatest(&high))
    };
    assert_eq!(got, [&[0.0][..], &half(false), &[500.0], &half(true)].concat());
}

#[test]
fn layers_that_share_an_input_share_its_curve_and_the_model_runs() {
    let scratch = Scratch::new("ranges-run");
    calibration(&scratch);
    let report = pack(&options(&scratch, RULE), &mut |_| ()).unwrap();
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let curves = packed.tensors().iter().filter(|t| t.name.ends_with(".activation_range")).count();
    let coded = report.layers.iter().filter(|line| line.meta.activation_bits == 8).count();
    // Queries, keys and values read one value in each of two blocks.
    assert_eq!((coded, curves), (12, 8));
    assert!(packed.meta().quantization.config.ends_with("activations in ranges by min-max over 3 intervals of steps"));
    let denoiser = packed.program(Role::Denoiser).unwrap();
    for spec in denoiser.nodes.iter().filter_map(|node| node.op.quantizes()) {
        assert!(
            matches!(spec.range, QuantizeRange::Curve(RangeCurve { axis: CurveAxis::StepFraction, .. })),
            "{spec:?}"
        );
    }
    assert!(
        !denoiser
            .nodes
            .iter()
            .any(|n| matches!(n.op, Op::Quantize(Quantize { spec, .. }) if spec.range == QuantizeRange::Dynamic))
    );
    let model = aquatint::Model::new(&packed).unwrap();
    let mut request = aquatint::pipeline::Request::new(&model, aquatint::pipeline::Prompts::Classes(vec![0, 3]));
    request.steps = 6;
    let cpu = aquatint::raw::backend::cpu::Cpu::best();
    let mut session = aquatint::pipeline::Session::new(&model, &cpu);
    let mut job = session.job(request).unwrap();
    while job.upcoming().unwrap().is_some() {
        job.next().unwrap();
    }
}

#[test]
fn four_bits_are_codes_as_any_others() {
    let scratch = Scratch::new("ranges-four");
    let path = calibration(&scratch);
    let layer = "transformer/transformer_blocks.0.ff.net.2";
    let all = extremes(&path, layer).concat().concat();
    let most = greatest(&all).max(-least(&all));

    let once = ActivationRanges { intervals: 1, symmetric: true, ..RULE };
    let options = options(&scratch, once);
    let config = options.q_config.clone().unwrap();
    let layers = r#"{"default": "f16", "layers": {"*.attn1.*": "w8a4", "*.ff.*": "w8a4"}}"#;
    std::fs::write(config, layers).unwrap();
    for range in [options.activation_ranges, None] {
        let report = pack(&Options { activation_ranges: range, ..options.clone() }, &mut |_| ()).unwrap();
        assert!(report.layers.iter().filter(|line| line.meta.activation_bits == 4).count() == 12);
        let packed = Packed::open(scratch.path("m.aqt")).unwrap();
        let denoiser = packed.program(Role::Denoiser).unwrap();
        let specs: Vec<_> = denoiser.nodes.iter().filter_map(|node| node.op.quantizes()).collect();
        assert!(!specs.is_empty() && specs.iter().all(|spec| spec.bits == 4));
        assert!(specs.iter().all(|spec| (spec.range == QuantizeRange::Dynamic) == range.is_none()));
        if range.is_some() {
            // TDQ's grid of 4 bits: 7 steps to either side of the middle one.
            assert_eq!(curve(&packed, layer), [0.0, most / 7.0, 8.0]);
        }
        let model = aquatint::Model::new(&packed).unwrap();
        let mut request = aquatint::pipeline::Request::new(&model, aquatint::pipeline::Prompts::Classes(vec![0, 3]));
        request.steps = 3;
        let cpu = aquatint::raw::backend::cpu::Cpu::best();
        let output = aquatint::pipeline::Session::new(&model, &cpu).run(request).unwrap();
        assert!(output.latents.iter().all(|v| v.is_finite()));
    }
}

/// Of inputs that are divided, a range is that of what is left of every channel.
#[test]
fn ranges_of_smoothed_inputs_are_of_what_is_left() {
    let scratch = Scratch::new("ranges-smooth");
    let path = calibration(&scratch);
    let smoothing = Some(Smoothing { rule: SmoothRule::SmoothQuant(0.5), layers: Layers::All });
    // A norm's result, which it divides itself, and an activation's, which is divided where it becomes codes.
    for (intervals, layer, reads) in [(3, "ff.net.0.proj", "smoothing"), (1, "ff.net.2", "input_factors")] {
        let layer = format!("transformer/transformer_blocks.0.{layer}");
        let ranges = ActivationRanges { intervals, ..RULE };
        let options = Options { smoothing: smoothing.clone(), ..options(&scratch, ranges) };
        pack(&options, &mut |_| ()).unwrap();
        let packed = Packed::open(scratch.path("m.aqt")).unwrap();
        let factors = packed.tensors().iter().position(|t| t.name == format!("{layer}.{reads}")).unwrap();
        let TensorView::F32(factors) = packed.tensor(factors) else { panic!("floats") };
        let divided = extremes(&path, &layer).map(|calls| {
            let left = |call: &Vec<f32>| call.iter().zip(factors).map(|(v, f)| v / f).collect::<Vec<_>>();
            calls.iter().map(left).collect::<Vec<_>>()
        });
        let per = 3 / intervals;
        let expected: Vec<f32> = (0..intervals)
            .flat_map(|i| {
                let [low, high] = [0, 1].map(|end| divided[end][i * per..(i + 1) * per].concat());
                let (low, high) = (f64::from(least(&low)), f64::from(greatest(&high)));
                let scale = (high - low) / 255.0;
                [i as f32 / intervals as f32, scale as f32, (-low / scale).round_ties_even() as f32]
            })
            .collect();
        assert_eq!(curve(&packed, &layer), expected, "{layer}");
        assert!(factors.iter().any(|f| (f - 1.0).abs() > 0.1));
    }
    let mse = ActivationRanges { rule: RangeRule::Mse, ..RULE };
    std::fs::remove_file(scratch.path("m.aqt")).unwrap();
    let error = pack(&Options { smoothing, ..options(&scratch, mse) }, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("--smooth: expected --act-range min-max or ema: histograms are of inputs"), "{error}");
    let rotated = Options { rotation: Some(Layers::All), ..options(&scratch, RULE) };
    let error = pack(&rotated, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("--rotate: expected --act-range dynamic"), "{error}");
}

/// What a prompt gives is the same at every call, so its layers have one range however many intervals there are.
#[test]
fn prompts_have_one_range() {
    let scratch = Scratch::new("ranges-prompts");
    let mut settings = Settings::new(fixture("sd/v1"), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(4), ..Default::default() };
    std::fs::write(scratch.path("prompts.txt"), "a cat\na dog\n").unwrap();
    (settings.images, settings.calls, settings.prompts) = (2, 4, Some(scratch.path("prompts.txt")));
    calibrate(&settings, &mut |_| true).unwrap();
    let config = scratch.path("c.json");
    std::fs::write(&config, r#"{"default": "f16", "layers": {"*.attn2.*": "w8a8"}}"#).unwrap();
    let options = Options {
        model: fixture("sd/v1"),
        q_config: Some(config.display().to_string()),
        calibration: Some(settings.output),
        activation_ranges: Some(RangeSource::Calibration(RULE)),
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    pack(&options, &mut |_| ()).unwrap();
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let curves = packed.tensors().iter().filter(|t| t.name.ends_with(".activation_range"));
    let points = |part: &str| curves.clone().filter(|t| t.name.contains(part)).map(|t| t.dims[0]).collect::<Vec<_>>();
    assert!(points(".to_q.").len() == 7 && points(".to_q.").iter().all(|&n| n == 3), "{:?}", points(".to_q."));
    // All blocks read one context, whose curve has the name of the first of their layers.
    assert_eq!(points(".to_k."), [1]);
}

#[test]
fn ranges_that_nothing_tells_are_refused() {
    let scratch = Scratch::new("ranges-refused");
    calibration(&scratch);
    let refusal = |options: &Options| {
        let error = pack(options, &mut |_| ()).unwrap_err().to_string();
        assert_eq!(scratch.entries(), ["c.json", "c.safetensors"]);
        error
    };
    let blind = Options { calibration: None, ..options(&scratch, RULE) };
    assert!(refusal(&blind).contains("--act-range: expected --calib FILE"), "{}", refusal(&blind));
    for intervals in [0, 4] {
        let error = refusal(&options(&scratch, ActivationRanges { intervals, ..RULE }));
        let told = format!(
            "--act-intervals: expected 1 to 3, the calls that were looked at; more of --cali-st allow more, got {intervals}"
        );
        assert!(error.contains(&told), "{error}");
    }
}
