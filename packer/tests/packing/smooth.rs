//! Smoothing: the float model stays what it is, factors are those of numpy, and codes become better.

use crate::common::{Dense, Scratch, fixture, load, load_component};
use aquatint::options::SamplingOptions;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{CurveAxis, Dims, InputKind, Op, Quantize, Role, Tensor};
use packer::calibrate::{Calibration, Settings, calibrate};
use packer::emit::{ActivationRanges, Layers, Options, Packing, RangeSource, Report, Smoothing, pack};
use packer::pass::{Fold, Obstacle, Smoothable, fold, smoothables};
use packer::quantize::{
    CodebookType, Method, Moments, Pruning, RangeRule, Rule, SecondMoments, SmoothInput, SmoothLayer, SmoothRule,
    candidates, output_error, search,
};
use packer::unpack::unpack;
use packer::weight::Weights;
use packer::weights::Float;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

type Smoothed = Vec<(Smoothable, Vec<f32>)>;

/// A factor for a channel, far from 1 and from powers of two.
fn factor(channel: usize) -> f32 {
    0.07 + (channel * 7 % 11) as f32 * 0.77
}

/// Packs `model` as f32, every value of the denoiser that can be divided divided by factors; `spoil` may undo some of it.
/// Returns what was divided and what could not be.
fn smooth_all(model: &Path, output: &Path, spoil: &dyn Fn(&mut Weights, &Smoothed)) -> (Smoothed, Vec<Smoothable>) {
    let options = Options {
        model: model.to_owned(),
        q_config: Some("f32".into()),
        output: output.to_owned(),
        ..Options::default()
    };
    let mut packing = Packing::open(&options).unwrap();
    let dims = Dims { batch: 1, conditions: 1, height: 8, width: 8, tokens: 1, ..Dims::ONE };
    let dims = match model.ends_with("d3odd") || model.ends_with("d1p1") {
        true => Dims { height: 6, width: 6, ..dims },
        false => dims,
    };
    let sites = smoothables(&packing.programs, &packing.weights, &dims).unwrap();
    let of_denoiser = |site: &Smoothable| packing.programs[site.program].role == Role::Denoiser;
    let (can, cannot): (Vec<_>, Vec<_>) = sites.into_iter().filter(of_denoiser).partition(|site| site.fold.is_ok());
    let smoothed: Smoothed =
        can.into_iter().map(|site| (site.clone(), (0..site.channels).map(factor).collect())).collect();
    fold(&mut packing.programs, &mut packing.weights, &smoothed);
    spoil(&mut packing.weights, &smoothed);
    packing.write(&mut |_| ()).unwrap();
    (smoothed, cannot)
}

/// What one call of the denoiser at `size` gives of `batch` samples.
fn run(file: &Path, [height, width]: [usize; 2], batch: usize) -> Vec<f32> {
    let packed = Packed::open(file).unwrap();
    packed.verify().unwrap();
    let wave = |n: usize, by: f32| (0..n).map(|i| (i as f32 * by).sin()).collect::<Vec<_>>();
    let program = packed.program(Role::Denoiser).unwrap();
    let tokens = 5;
    let dims = Dims { batch, conditions: batch, height, width, tokens, ..Dims::ONE };
    let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let cpu = Cpu::best();
    let mut executor = Executor::new(&cpu, &packed, Role::Denoiser, binding).unwrap();
    let len = |kind| {
        program
            .input(kind)
            .map(|v| program.inputs[v.0 as usize].dims.iter().map(|&dim| dims.resolve(dim)).product::<usize>())
    };
    executor.write_sample(&wave(len(InputKind::Sample).unwrap(), 0.37)).unwrap();
    let context = len(InputKind::Context).map(|n| wave(n, 0.73));
    let classes = len(InputKind::ClassLabels).map(|n| (0..n as u32).collect::<Vec<_>>());
    let inputs =
        PromptInputs { context: context.as_deref(), class_labels: classes.as_deref(), ..PromptInputs::default() };
    executor.set_prompt(&inputs).unwrap();
    executor.set_timesteps(std::iter::repeat_n(371.0, 1)).unwrap();
    executor.call(0).unwrap();
    let mut out = vec![0.0; executor.plan().output_type.len()];
    executor.read_output(&mut out).unwrap();
    out
}

/// `|a - b| / |b|`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b))) / norm(&mut b.iter().map(|&b| f64::from(b)))
}

/// What rounding to f32 in other places may do to a network of a few dozen layers.
const ROUNDING: f64 = 1e-5;

#[test]
fn float_models_stay_what_they_are() {
    let glyphs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/glyphs");
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/words");
    // Per model: norms, values of attention, gated layers; and sizes to run at.
    for (model, counts, sizes) in [
        (fixture("dit/d2"), [5, 2, 0], vec![[8, 8]]),
        (fixture("dit/d3odd"), [7, 3, 0], vec![[6, 6]]),
        (fixture("sd/v1"), [28, 14, 7], vec![[8, 8], [9, 7]]),
        (glyphs, [13, 6, 0], vec![[16, 16]]),
        (words, [16, 8, 4], vec![[16, 16], [13, 11]]),
    ] {
        let scratch = Scratch::new("smooth-float");
        let (plain, smooth) = (scratch.path("plain.aqt"), scratch.path("smooth.aqt"));
        crate::common::pack_as(&model, Some("f32"), &plain).unwrap();
        let (smoothed, _) = smooth_all(&model, &smooth, &|_, _| ());
        let mut found = [0; 3];
        for (site, _) in &smoothed {
            found[match site.fold {
                Ok(Fold::Norm { .. }) => 0,
                Ok(Fold::Rows(_)) => 1,
                Ok(Fold::EvenRows(_)) => 2,
                Err(_) => unreachable!("divided"),
            }] += 1;
        }
        assert_eq!(found, counts, "{}", model.display());
        for size in sizes {
            for batch in [1, 2, 3] {
                let [got, want] = [&smooth, &plain].map(|file| run(file, size, batch));
                assert_ne!(got, want, "the factors went in");
                let error = relative(&got, &want);
                assert!(error < ROUNDING, "{} at {size:?}: {error:e}", model.display());
            }
        }
    }
}

#[test]
fn a_factor_that_one_of_two_readers_lacks_is_noticed() {
    let scratch = Scratch::new("smooth-canary");
    let (plain, spoiled) = (scratch.path("plain.aqt"), scratch.path("spoiled.aqt"));
    crate::common::pack_as(&fixture("dit/d2"), Some("f32"), &plain).unwrap();
    for which in [0, 1] {
        smooth_all(&fixture("dit/d2"), &spoiled, &|weights, smoothed| {
            let (site, _) = smoothed.iter().find(|(site, _)| site.layers.len() > 1).unwrap();
            weights[site.layers[which]].steps.pop();
        });
        let error = relative(&run(&spoiled, [8, 8], 1), &run(&plain, [8, 8], 1));
        assert!(error > 100.0 * ROUNDING, "{error:e}");
    }
}

#[test]
fn weights_come_back_as_they_were() {
    for (model, component) in [(fixture("dit/d3odd"), "transformer"), (fixture("sd/v1"), "unet")] {
        let scratch = Scratch::new("smooth-unpack");
        let (file, back) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
        smooth_all(&model, &file, &|_, _| ());
        unpack(&file, &back, Some(component), Float::F32).unwrap();
        let (got, source) = (load(&back), load_component(&model.join(component)));
        // Every step there and back is a unit off at most, and no weight has more than two.
        for (key, tensor) in &got {
            let units = tensor.values.iter().zip(&source[key].values).map(|(a, b)| a.to_bits().abs_diff(b.to_bits()));
            assert!(units.max() <= Some(2), "{key}");
        }
        assert!(got.len() > 40);
    }
}

#[test]
fn what_cannot_be_divided_is_told() {
    let scratch = Scratch::new("smooth-cannot");
    let (_, cannot) = smooth_all(&fixture("dit/d2"), &scratch.path("m.aqt"), &|_, _| ());
    let told = |channels: usize| {
        let of = cannot.iter().filter(move |site| site.channels == channels);
        of.map(|site| site.fold.unwrap_err()).collect::<Vec<_>>()
    };
    // The second layers of both feed-forwards.
    assert_eq!(told(128), [Obstacle::Producer("an activation"); 2]);
    assert!(told(32).contains(&Obstacle::Producer("pointwise")), "what every modulation is made from: {cannot:?}");
}

/// The numbers of `tests/fixtures/make_smooth.py`.
struct Numbers(BTreeMap<String, (Vec<usize>, Vec<f64>)>);

impl Numbers {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/smooth.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let number = |t: &safetensors::tensor::TensorView| match t.dtype() {
            safetensors::Dtype::F32 => {
                t.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            safetensors::Dtype::F64 => {
                t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            other => panic!("{other:?}"),
        };
        Numbers(tensors.iter().map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), number(&t)))).collect())
    }

    fn get(&self, name: &str) -> Vec<f64> {
        self.0[name].1.clone()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.0[name].1.iter().map(|&v| v as f32).collect()
    }

    fn input(&self) -> SmoothInput {
        let moments = Moments {
            rows: self.0["inputs"].0[0] as f64,
            mean: self.get("mean"),
            second: SecondMoments::Dense(self.get("second")),
        };
        let squared_range = self.get("squared_range")[0];
        SmoothInput { moments, low: self.floats("low"), high: self.floats("high"), squared_range }
    }

    /// The two layers, with weights of `weight_bits` and activations of `activation_bits`.
    fn layers(&self, weight_bits: Option<u8>, activation_bits: Option<u8>) -> Vec<SmoothLayer> {
        let codes = weight_bits.map(|bits| {
            let bits = aquatint::raw::codec::Bits::new(bits.into()).unwrap();
            (Method::Uniform(Rule::MinMax), bits, CodebookType::Int8)
        });
        let layer = |i: usize| {
            let name = format!("weights.{i}");
            SmoothLayer { weights: self.floats(&name), rows: self.0[&name].0[0], codes, activation_bits }
        };
        [0, 1].map(layer).to_vec()
    }
}

#[test]
fn factors_by_published_rules_are_those_of_numpy() {
    let numbers = Numbers::open();
    let (layers, input) = (numbers.layers(None, None), numbers.input());
    // numpy's powers and ours may differ in the last place of f64, which may round to another f32.
    let near = |got: &[f32], want: &[f32], what: &str| {
        assert_eq!(got.len(), want.len());
        let units = got.iter().zip(want).map(|(a, b)| a.to_bits().abs_diff(b.to_bits())).max();
        assert!(units <= Some(1), "{what}: {units:?} units");
    };
    for alpha in [0.3, 0.5, 0.11] {
        let factors = SmoothRule::SmoothQuant(alpha).factors(&layers, &input);
        near(&factors, &numbers.floats(&format!("old.{alpha}")), "old");
        for (i, layer) in layers.iter().enumerate() {
            let scaled: Vec<f32> = layer.weights.iter().zip(factors.iter().cycle()).map(|(w, s)| w * s).collect();
            near(&scaled, &numbers.floats(&format!("old.{alpha}.weights.{i}")), "weights");
        }
    }
    for alpha in [0.01, 0.5] {
        let factors = SmoothRule::ViditQ(alpha).factors(&layers, &input);
        near(&factors, &numbers.floats(&format!("new.{alpha}")), "new");
    }
}

#[test]
fn errors_are_those_of_inputs_themselves() {
    let numbers = Numbers::open();
    let (input, tried) = (numbers.input(), candidates().collect::<Vec<_>>());
    let expected: Vec<(f64, f64)> = numbers.get("candidates").chunks_exact(2).map(|c| (c[0], c[1])).collect();
    assert_eq!(tried.len(), 39);
    assert!(tried.iter().zip(&expected).all(|(a, b)| (a.0 - b.0).abs() + (a.1 - b.1).abs() < 1e-12));
    let maxima: Vec<f32> = input.low.iter().zip(&input.high).map(|(l, h)| l.abs().max(h.abs())).collect();
    let layers = numbers.layers(None, None);
    let column = |j: usize| {
        let rows = layers.iter().flat_map(|layer| layer.weights.chunks_exact(maxima.len()));
        rows.map(|row| row[j].abs()).fold(0.0, f32::max)
    };
    let columns: Vec<f32> = (0..maxima.len()).map(column).collect();
    let errors = |weights, activations| {
        let layers = numbers.layers(weights, activations);
        let one = |&(alpha, beta): &(f64, f64)| {
            let factors = packer::quantize::smooth_factors(&maxima, &columns, alpha, beta);
            output_error(&layers, &input, &factors)
        };
        tried.iter().map(one).collect::<Vec<f64>>()
    };
    // Of weights alone the moments say all; what remains is the rounding of f32 and of moments.
    for (got, want) in errors(Some(4), None).iter().zip(numbers.get("weights_error")) {
        assert!((got / want - 1.0).abs() < 1e-4, "{got} {want}");
    }
    // Ranges of rows are estimated.
    for (got, want) in errors(None, Some(6)).iter().zip(numbers.get("inputs_error")) {
        assert!((0.8..1.25).contains(&(got / want)), "{got} {want}");
    }
    assert!(errors(None, None).iter().all(|&error| error == 0.0));
}

#[test]
fn a_search_finds_what_is_good_in_truth() {
    let numbers = Numbers::open();
    let found = search(&numbers.layers(Some(4), Some(6)), &numbers.input());
    let truth = numbers.get("error");
    let chosen = candidates().position(|exponents| exponents == found.exponents).unwrap();
    let best = truth.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(truth[chosen] <= 1.05 * best && truth[chosen] < 0.3 * truth[0], "{chosen}: {} of {best}", truth[chosen]);
    // Activations of 6 bits are part of the error: with weights of floats factors by inputs alone are best.
    let inputs_alone = search(&numbers.layers(None, Some(6)), &numbers.input());
    assert_ne!(inputs_alone.exponents, (0.0, 0.0));
    assert!(inputs_alone.error < 0.5 * inputs_alone.plain_error);
}

/// A calibration of `model`: 3 of the 6 calls of a run, guidance on.
fn calibration(model: PathBuf, output: PathBuf) -> Calibration {
    let mut settings = Settings::new(model, output);
    settings.sampling = SamplingOptions { steps: Some(6), cfg_scale: Some(3.0), ..Default::default() };
    (settings.images, settings.calls) = (3, 3);
    calibrate(&settings, &mut |_| true).unwrap();
    Calibration::open(&settings.output).unwrap()
}

#[test]
fn moments_of_divided_inputs_follow_from_those_before() {
    let scratch = Scratch::new("smooth-moments");
    let file = scratch.path("smooth.aqt");
    let (smoothed, _) = smooth_all(&fixture("dit/d2"), &file, &|_, _| ());
    let before = calibration(fixture("dit/d2"), scratch.path("a.safetensors"));
    let after = calibration(file.clone(), scratch.path("b.safetensors"));
    let packed = Packed::open(&file).unwrap();
    let mut compared = 0;
    for (site, factors) in &smoothed {
        for layer in &site.layers {
            let name = &packed.tensors()[layer.0 as usize].name;
            let [want, got] = [&before, &after].map(|c| c.moments(name).unwrap().unwrap());
            let want = want.divided(factors);
            let scale = |i: usize| want.at(i, i).sqrt();
            for (i, j) in (0..factors.len()).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let off = (want.at(i, j) - got.at(i, j)).abs();
                assert!(off <= 1e-4 * scale(i) * scale(j), "{name} {i} {j}: {off:e}");
            }
            for (i, (a, b)) in want.mean.iter().zip(&got.mean).enumerate() {
                assert!((a - b).abs() <= 1e-4 * scale(i), "{name} {i}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * (3 + 1 + 1) + 1);
}

fn options(scratch: &Scratch, smoothing: Option<Smoothing>) -> Options {
    // By name: layers with so few inputs keep f16 otherwise.
    let config = scratch.path("c.json");
    std::fs::write(&config, r#"{"default": "f16", "layers": {"*.attn1.*": "w4a6", "*.ff.*": "w4a6"}}"#).unwrap();
    Options {
        model: fixture("dit/d2"),
        q_config: Some(config.display().to_string()),
        calibration: Some(scratch.path("c.safetensors")),
        smoothing,
        output: scratch.path("m.aqt"),
        ..Options::default()
    }
}

fn searched(layers: Option<&str>) -> Option<Smoothing> {
    Some(Smoothing { rule: SmoothRule::Search, layers: layers.map_or(Layers::All, |glob| Layers::Glob(glob.into())) })
}

fn note<'a>(report: &'a Report, layer: &str) -> &'a str {
    let line = report.layers.iter().find(|line| line.meta.name.ends_with(layer)).unwrap();
    line.meta.note.as_deref().unwrap_or("")
}

#[test]
fn packing_smooths_and_says_so() {
    let scratch = Scratch::new("smooth-pack");
    calibration(fixture("dit/d2"), scratch.path("c.safetensors"));
    let pack = |smoothing| pack(&options(&scratch, smoothing), &mut |_| ());
    pack(None).unwrap();
    let before = run(&scratch.path("m.aqt"), [8, 8], 1);
    let by_rule = Smoothing { rule: SmoothRule::SmoothQuant(0.5), layers: Layers::All };
    let report = pack(Some(by_rule)).unwrap();
    assert_ne!(run(&scratch.path("m.aqt"), [8, 8], 1), before);
    assert_eq!(report.notes.len(), 1);
    let told = "8 inputs of layers are smoothed, 2 of them where they become codes";
    assert_eq!(report.notes[0], told);
    assert_eq!(note(&report, "transformer_blocks.1.ff.net.0.proj"), "smoothed");
    assert_eq!(note(&report, "transformer_blocks.1.ff.net.2"), "smoothed");
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    assert!(packed.meta().quantization.config.ends_with("smoothed by SmoothQuant's rule, alpha 0.5"));
    // The factors in the file are the rule's, of what the calibration has.
    let extremes = Calibration::open(&scratch.path("c.safetensors"))
        .unwrap()
        .extremes("transformer/transformer_blocks.0.attn1.to_k.weight")
        .unwrap()
        .unwrap();
    let source = load_component(&fixture("dit/d2").join("transformer"));
    let weight = |name: &str| &source[&format!("transformer_blocks.0.attn1.{name}.weight")];
    let most = |j: usize| {
        let column = |t: &Dense| t.values.iter().skip(j).step_by(32).map(|w| w.abs()).fold(0.0, f32::max);
        ["to_q", "to_k", "to_v"].map(|name| column(weight(name))).into_iter().fold(0.0, f32::max)
    };
    let name = "transformer/transformer_blocks.0.attn1.to_q.smoothing";
    let index = packed.tensors().iter().position(|t| t.name == name).unwrap();
    let TensorView::F32(factors) = packed.tensor(index) else { panic!("floats") };
    for (j, factor) in factors.iter().enumerate() {
        let a = extremes.low[j].abs().max(extremes.high[j].abs());
        let want = (f64::from(a) / f64::from(most(j))).sqrt();
        assert!((f64::from(*factor) / want - 1.0).abs() < 1e-6);
    }
    // Norms still make codes themselves.
    let program = packed.program(Role::Denoiser).unwrap();
    assert!(program.nodes.iter().any(|n| matches!(&n.op, Op::LayerNorm(norm) if norm.quantize.is_some())));

    let report = pack(searched(Some("*.1.attn1.to_v"))).unwrap();
    assert!(note(&report, "1.attn1.to_q").contains("smoothed"), "it reads the same");
    assert_eq!(note(&report, "0.attn1.to_q"), "");
    let meta = Packed::open(scratch.path("m.aqt")).unwrap().meta().clone();
    assert!(meta.quantization.config.ends_with("smoothed by search at *.1.attn1.to_v"));
    pack(searched(None)).unwrap();
    let tiers: Vec<u64> = [1, 3]
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| pack(searched(None))).unwrap();
            xxhash_rust::xxh3::xxh3_64(&std::fs::read(scratch.path("m.aqt")).unwrap())
        })
        .to_vec();
    assert_eq!(tiers[0], tiers[1], "whatever the threads");
}

#[test]
fn what_smoothing_does_not_go_with_is_refused() {
    let scratch = Scratch::new("smooth-refused");
    calibration(fixture("dit/d2"), scratch.path("c.safetensors"));
    let error = |options: Options| pack(&options, &mut |_| ()).unwrap_err().to_string();
    let with = |layers| options(&scratch, searched(layers));
    let told = error(Options { calibration: None, ..with(None) });
    assert_eq!(told, "--smooth: expected --calib FILE: a calibration knows how large activations are, got none");
    let told = error(Options { import: Some("x.pth".into()), ..with(None) });
    assert!(told.contains("--smooth: expected weights that are quantized here"), "{told}");
    let told = error(with(Some("nothing")));
    assert!(told.contains("--smooth: expected layers that become codes") && told.ends_with("got none"), "{told}");
    assert!(error(with(Some("[a"))).contains("--smooth-layers: expected a glob of layers' paths"));
    assert_eq!(scratch.entries(), ["c.json", "c.safetensors"]);
}

/// What a layer's input is divided by where it becomes codes multiplies the weight back, and `unpack` gives the weight as it
/// was: the activation in front of it lets no factors through.
#[test]
fn factors_that_fold_into_nothing_are_in_the_quantization() {
    let scratch = Scratch::new("smooth-turned");
    calibration(fixture("dit/d2"), scratch.path("c.safetensors"));
    let only = Smoothing { rule: SmoothRule::SmoothQuant(0.5), layers: Layers::Glob("*.ff.net.2".into()) };
    let report = pack(&eight_bits(&scratch, Some(only)), &mut |_| ()).unwrap();
    assert_eq!(report.notes[0], "2 inputs of layers are smoothed, 2 of them where they become codes");
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let program = packed.program(Role::Denoiser).unwrap();
    let floats = |Tensor(i): Tensor| {
        let TensorView::F32(values) = packed.tensor(i as usize) else { panic!("floats") };
        values.to_vec()
    };
    let turned: Vec<_> = program
        .nodes
        .iter()
        .filter_map(|node| match node.op {
            Op::Quantize(Quantize { turn: Some(turn), .. }) => Some((node.path.clone(), turn)),
            _ => None,
        })
        .collect();
    assert_eq!(turned.len(), 2);
    let parameter = |name: &str| packed.tensors().iter().position(|t| t.name == name).map(|i| floats(Tensor(i as u32)));
    for (path, turn) in turned {
        assert!(path.ends_with("ff.net.2") && turn.block == 0, "{path}");
        let factors = parameter(&format!("transformer/{path}.input_factors")).unwrap();
        let inverse: Vec<f32> = factors.iter().map(|factor| factor.recip()).collect();
        assert_eq!(floats(turn.factors), inverse);
        assert!(factors.iter().any(|factor| (factor - 1.0).abs() > 0.1), "they are some");
    }
    restored(&scratch, "*.ff.net.2", 0.02);
}

/// A rotation changes codes and not what they stand for: the weight comes back, and outputs stay near the unrotated ones'.
#[test]
fn rotations_are_undone_by_the_weights() {
    let scratch = Scratch::new("rotated");
    calibration(fixture("dit/d2"), scratch.path("c.safetensors"));
    let mut plain = eight_bits(&scratch, None);
    let floats = {
        let whole = Options { q_config: Some("f32".into()), calibration: None, ..plain.clone() };
        pack(&whole, &mut |_| ()).unwrap();
        run(&scratch.path("m.aqt"), [8, 8], 2)
    };
    let error = |options: &Options| {
        pack(options, &mut |_| ()).unwrap();
        let got = run(&scratch.path("m.aqt"), [8, 8], 2);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let (off, all) = got.iter().zip(&floats).fold((0.0, 0.0), |(o, a), (x, y)| (o + square(x - y), a + square(*y)));
        (off / all).sqrt()
    };
    let before = error(&plain);
    plain.rotation = Some(Layers::All);
    let after = error(&plain);
    assert!(after != before && after < 3.0 * before + 1e-3, "{before} {after}");
    restored(&scratch, "*", 0.02);
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    assert!(packed.meta().quantization.config.ends_with("rotated"));
    let program = packed.program(Role::Denoiser).unwrap();
    let blocks: Vec<u32> = program
        .nodes
        .iter()
        .filter_map(|node| match node.op {
            Op::Quantize(Quantize { turn, .. }) => turn.map(|turn| turn.block),
            _ => None,
        })
        .collect();
    assert!(!blocks.is_empty() && blocks.iter().all(|block| block.is_power_of_two() && *block >= 8), "{blocks:?}");
    // With smoothing, and without a calibration.
    let both = Options { smoothing: searched(None), ..plain.clone() };
    assert!(error(&both) < 3.0 * before + 1e-3);
    let alone = Options { calibration: None, ..plain.clone() };
    assert!(error(&alone) < 0.1);
    let fixed = ActivationRanges {
        rule: RangeRule::MinMax,
        intervals: 1,
        axis: CurveAxis::StepFraction,
        symmetric: false,
        momentum: None,
    };
    for (options, expected) in [
        (
            Options { activation_ranges: Some(RangeSource::Calibration(fixed)), ..plain },
            "--rotate: expected --act-range dynamic",
        ),
        (Options { pruning: Some(Pruning::Layer(0.2)), ..alone.clone() }, "--rotate: expected no --prune"),
        (Options { rotation: Some(Layers::Glob("nothing".into())), ..alone.clone() }, "or it has no effect"),
        (Options { rotation: Some(Layers::Glob("[".into())), ..alone }, "--rotate-layers: expected a glob"),
    ] {
        let told = pack(&options, &mut |_| ()).unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
    }
}

/// [`options`] with 8 bits for weights and activations.
fn eight_bits(scratch: &Scratch, smoothing: Option<Smoothing>) -> Options {
    let options = options(scratch, smoothing);
    let config = r#"{"default": "f16", "layers": {"*.attn1.*": "w8a8", "*.ff.*": "w8a8"}}"#;
    std::fs::write(scratch.path("c.json"), config).unwrap();
    options
}

/// Weights of layers that a glob matches come back from `m.aqt` within `most` of their size.
fn restored(scratch: &Scratch, glob: &str, most: f64) {
    unpack(&scratch.path("m.aqt"), &scratch.path("w.safetensors"), None, Float::F32).unwrap();
    let (back, source) = (load(&scratch.path("w.safetensors")), load_component(&fixture("dit/d2").join("transformer")));
    let glob = globset::Glob::new(&format!("{glob}.weight")).unwrap().compile_matcher();
    let mut seen = 0;
    for (name, weight) in source.iter().filter(|(name, w)| glob.is_match(name) && w.shape.len() == 2) {
        let square = |x: f32| f64::from(x) * f64::from(x);
        let off: f64 = weight.values.iter().zip(&back[name].values).map(|(a, b)| square(a - b)).sum();
        let all: f64 = weight.values.iter().map(|&a| square(a)).sum();
        assert!(off <= most * most * all, "{name}: {}", (off / all).sqrt());
        seen += 1;
    }
    assert!(seen > 0);
}
