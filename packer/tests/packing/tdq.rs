//! Checkpoints of TDQ, against what the project's forward pass makes of them.

use crate::common::{Dense, Scratch, fixture, load};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::exec::Executor;
use aquatint::raw::format::{Packed, TensorSpec, TensorView, Writer};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{
    Conv2d, CurveAxis, Dim, Dims, Input, InputKind, Linear, Node, Op, Program, Quantize, QuantizeGrain, QuantizeRange,
    QuantizeSpec, RangeCurve, Role, Tensor, Value,
};
use packer::emit::{Options, RangeSource, Report, pack};
use packer::source::layout::{self, Elsewhere, Entry};
use packer::source::settings::Overrules;
use packer::source::{Checkpoint, view::Part};
use packer::unpack::unpack;
use packer::weights::Float;
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn file() -> PathBuf {
    fixture("imports/tdq.ckpt")
}

fn options(scratch: &Scratch) -> Options {
    Options {
        model: file(),
        q_config: Some("w4a8".into()),
        import: Some(file()),
        activation_ranges: Some(RangeSource::Import { symmetric: None }),
        output: scratch.path("m.aqt"),
        ..Options::default()
    }
}

fn expected() -> BTreeMap<String, Dense> {
    load(&fixture("imports/tdq_expected.safetensors"))
}

/// By the file's paths of layers, those of the packed denoiser that are made of them.
fn layers() -> BTreeMap<String, Vec<(String, Part)>> {
    let model = layout::open(&file(), Elsewhere::default(), &Overrules::default()).unwrap();
    let own = &model.component("unet").weights;
    let mut layers: BTreeMap<String, Vec<(String, Part)>> = BTreeMap::new();
    let names = Checkpoint::open_file(&file(), &mut Vec::new()).unwrap();
    for key in own.keys().filter(|key| key.ends_with(".weight")) {
        let (source, part) = own.published(key);
        // Averages are called without dots.
        let is = |name: &&str| {
            name.strip_prefix("state_dict.model.")
                .is_some_and(|name| source == format!("model_ema.{}", name.replace('.', "")))
        };
        let name = names.keys().find(is).unwrap();
        let layer = name.strip_prefix("state_dict.model.diffusion_model.").unwrap().strip_suffix(".weight").unwrap();
        layers
            .entry(layer.to_owned())
            .or_default()
            .push((key.strip_suffix(".weight").unwrap().to_owned(), part.clone()));
    }
    layers
}

fn line<'a>(report: &'a Report, layer: &str) -> &'a packer::emit::LayerLine {
    report.layers.iter().find(|line| line.meta.name == format!("unet/{layer}")).unwrap()
}

fn tensor<'a>(packed: &'a Packed<FileBytes>, name: &str) -> (usize, TensorView<'a>) {
    let index = packed.tensors().iter().position(|t| t.name == name).unwrap_or_else(|| panic!("{name}"));
    (index, packed.tensor(index))
}

/// The curve of the input of a layer: of its own name, or of the first layer that shares it.
fn curve(packed: &Packed<FileBytes>, layer: &str) -> Vec<[f32; 3]> {
    let TensorView::F32(points) = tensor(packed, &format!("unet/{layer}.activation_range")).1 else { panic!("floats") };
    points.as_chunks::<3>().0.to_vec()
}

/// `points` at each of the thousand timesteps.
fn at_each(points: &[[f32; 3]]) -> Vec<[f32; 2]> {
    let at = |t: usize| points.iter().rev().find(|point| point[0] <= t as f32).map(|point| [point[1], point[2]]);
    (0..1000).map(|t| at(t).unwrap()).collect()
}

#[test]
fn weights_are_those_of_the_forward_pass() {
    let scratch = Scratch::new("tdq-weights");
    let report = pack(&options(&scratch), &mut |_| ()).unwrap();
    let out = scratch.path("w.safetensors");
    unpack(&scratch.path("m.aqt"), &out, Some("unet"), Float::F32).unwrap();
    let (back, results) = (load(&out), expected());
    let results_file = Checkpoint::open_file(&fixture("imports/tdq_expected.safetensors"), &mut Vec::new()).unwrap();
    let mut compared = 0;
    for (layer, parts) in layers() {
        let source = format!("weights/{layer}");
        let Some(whole) = results.get(&source) else { continue };
        for (key, part) in parts {
            let got = &back[&format!("{key}.weight")];
            let (dims, source_dims) = (got.shape.clone(), whole.shape.clone());
            let entry = Entry { key: key.clone(), dims, source: source.clone(), source_dims, part };
            let want = results_file.renamed("tdq", &[entry]).unwrap().read(&key).unwrap();
            assert_eq!(got.values, want, "{layer}");
            assert_eq!((line(&report, &key).bits, &line(&report, &key).meta.method[..]), (4, "mse-4"));
            compared += 1;
        }
    }
    assert_eq!(compared, 1 + 3 + 1 + 1, "a fused projection is three");
    // What the project leaves as it is, and a layer whose quantizer is off, stay floats.
    let (off, _) = &layers()["output_blocks.5.1.proj_out"][0];
    for layer in ["time_embedding.linear_2", "mid_block.resnets.0.time_emb_proj", off] {
        let line = line(&report, layer);
        let note = line.meta.note.as_deref();
        assert_eq!(
            (line.bits, note),
            (16, Some("kept at f16: the imported file leaves it in floats, and no entry names it")),
            "{layer}"
        );
    }
}

#[test]
fn generators_become_tables_of_timesteps() {
    let scratch = Scratch::new("tdq-steps");
    let report = pack(&options(&scratch), &mut |_| ()).unwrap();
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let (layers, expected) = (layers(), expected());
    let mut compared = 0;
    for (name, want) in &expected {
        let Some(layer) = name.strip_prefix("steps/") else { continue };
        let (key, _) = layers[layer].iter().find(|(key, _)| !key.ends_with("to_q") && !key.ends_with("to_v")).unwrap();
        let shared = key.replace("to_k", "to_q");
        let points = at_each(&curve(&packed, if key.ends_with("to_k") { &shared } else { key }));
        let bits = line(&report, key).meta.activation_bits;
        for (t, (&[step, zero], want)) in points.iter().zip(&want.values).enumerate() {
            // torch works in f32, and its dot products in another order.
            assert!((step / want - 1.0).abs() < 2e-5, "{layer} at {t}: {step} {want}");
            let middle = match (layer.ends_with("in_layers.2"), bits) {
                (true, _) => 0.2785 / step,
                (false, 8) => 126.0,
                (false, bits) => {
                    assert_eq!(bits, 4);
                    6.0
                }
            };
            assert_eq!(zero, middle, "{layer} at {t}");
        }
        compared += 1;
    }
    assert_eq!(compared, 4);
    // A step that was not generated is one for all times.
    let (key, _) = &layers["output_blocks.4.1.proj_out"][0];
    let points = curve(&packed, key);
    assert_eq!((points.len(), points[0][0]), (1, 0.0));
    // An odd number of levels, of which the last is the greatest code.
    let denoiser = packed.program(Role::Denoiser).unwrap();
    let tops: BTreeSet<(u8, u8)> =
        denoiser.nodes.iter().filter_map(|node| node.op.quantizes()).map(|spec| (spec.bits, spec.top())).collect();
    assert_eq!(tops.into_iter().collect::<Vec<_>>(), [(4, 12), (4, 14), (8, 252), (8, 254)]);
    // Queries, keys and values read one value, in the same codes.
    let made = denoiser.nodes.iter().filter(|node| node.op.quantizes().is_some()).count();
    let read = report.layers.iter().filter(|line| line.meta.activation_bits != 32).count();
    assert_eq!(read - made, 2 * 7, "attentions");
}

/// What a layer of the packed file makes of `x`, (n, h, w, c), at some timesteps, alone.
fn forward(tier: Tier, packed: &Packed<FileBytes>, layer: &str, x: &Dense, timesteps: &[f32], file: &Path) -> Vec<f32> {
    let [n, c, h, w] = x.shape[..] else { panic!("(n, c, h, w)") };
    let spec = |name: &str| {
        let denoiser = packed.program(Role::Denoiser).unwrap();
        let weight = tensor(packed, name).0 as u32;
        denoiser.nodes.iter().find_map(|node| match node.op {
            Op::Linear(Linear { x, weight: Tensor(w), .. }) | Op::Conv2d(Conv2d { x, weight: Tensor(w), .. })
                if w == weight =>
            {
                denoiser.nodes[denoiser.node_of(x).unwrap()].op.quantizes()
            }
            _ => None,
        })
    };
    let weight = format!("unet/{layer}.weight");
    let QuantizeSpec { bits, grain, range: QuantizeRange::Curve(curve) } = spec(&weight).unwrap() else {
        panic!("a curve")
    };
    let mut writer = Writer::create(file).unwrap();
    for name in [&weight, &format!("unet/{layer}.bias"), &format!("unet/{layer}.activation_range")] {
        let info = &packed.tensors()[tensor(packed, name).0];
        let spec = TensorSpec { name: info.name.clone(), dims: info.dims.clone(), kind: info.kind };
        writer.tensor(spec, &packed.data()[info.offset..info.offset + info.bytes]).unwrap();
    }
    let dims = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(c as u32)];
    let range = QuantizeRange::Curve(RangeCurve { points: Tensor(2), ..curve });
    let (codes, bias) = (Value(2), Some(Tensor(1)));
    let ops = [
        Op::Quantize(Quantize { x: Value(0), spec: QuantizeSpec { bits, grain, range }, turn: None }),
        match grain {
            QuantizeGrain::Row => Op::Linear(Linear { x: codes, weight: Tensor(0), bias, ..Linear::default() }),
            QuantizeGrain::Sample => Op::Conv2d(Conv2d { x: codes, weight: Tensor(0), bias, ..Conv2d::default() }),
        },
    ];
    let inputs =
        vec![Input { kind: InputKind::Sample, dims }, Input { kind: InputKind::Timestep, dims: vec![Dim::Conditions] }];
    let nodes = ops.map(|op| Node { op, path: "layer".into(), wide: true }).to_vec();
    let program = Program { role: Role::Denoiser, inputs, nodes, output: Value(3), phases: Default::default() };
    let mut meta = packed.meta().clone();
    (meta.steps, meta.aliases, meta.made) = Default::default();
    meta.quantization.layers.clear();
    writer.finish(&[program], &meta).unwrap();
    let alone = Packed::open(file).unwrap();
    let dims = Dims { batch: n, conditions: 1, height: h, width: w, tokens: 1, ..Dims::ONE };
    let binding = Binding { dims, calls: timesteps.len(), table_bytes: 1 << 20, reserve: 0 };
    let cpu = Cpu::new(tier);
    let mut executor = Executor::new(&cpu, &alone, Role::Denoiser, binding).unwrap();
    let pixels: Vec<f32> = (0..n * h * w * c)
        .map(|i| {
            let (pixel, channel) = (i / c, i % c);
            x.values[(pixel / (h * w) * c + channel) * h * w + pixel % (h * w)]
        })
        .collect();
    executor.write_sample(&pixels).unwrap();
    executor.set_timesteps(timesteps.iter().copied()).unwrap();
    let mut all = Vec::new();
    for call in 0..timesteps.len() {
        executor.call(call).unwrap();
        let mut out = vec![0.0; executor.plan().output_type.len()];
        executor.read_output(&mut out).unwrap();
        all.extend(out);
    }
    all
}

/// Compares layers with the forward passes in `expected` whose names begin so; returns how many there are.
fn compare(scratch: &Scratch, prefix: &str) -> usize {
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let (layers, expected) = (layers(), expected());
    let mut compared = 0;
    for (name, y) in &expected {
        let Some(layer) = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(".y")) else { continue };
        let of = |what: &str| &expected[&format!("forward/{layer}.{what}")];
        let [calls, n, o, h, w] = y.shape[..] else { panic!("(calls, n, o, h, w)") };
        for tier in Tier::available() {
            let (key, _) = &layers[layer][0];
            let got = forward(tier, &packed, key, of("x"), &of("timesteps").values, &scratch.path("layer.aqt"));
            let want: Vec<f32> = (0..calls * n * h * w * o)
                .map(|i| {
                    let (pixel, channel) = (i / o, i % o);
                    y.values[(pixel / (h * w) * o + channel) * h * w + pixel % (h * w)]
                })
                .collect();
            let most = want.iter().fold(0f32, |most, v| most.max(v.abs()));
            // Steps of the generator are torch's but for 1e-6; another code would be off by far more.
            let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off <= 3e-6 * most, "{layer}: {off} of {most}");
        }
        compared += 1;
    }
    compared
}

#[test]
fn a_layer_of_integers_is_the_layer_of_the_forward_pass() {
    let scratch = Scratch::new("tdq-forward");
    // Of 15 levels the greatest is code 14, and those of SiLU begin at -0.2785: values beyond are cut off there.
    pack(&options(&scratch), &mut |_| ()).unwrap();
    assert_eq!(compare(&scratch, "forward/"), 3);
}

#[test]
fn an_offset_of_each_layer_moves_its_levels_if_it_is_said() {
    let scratch = Scratch::new("tdq-asym");
    let asym = Some(false);
    pack(
        &Options { activation_ranges: Some(RangeSource::Import { symmetric: asym }), ..options(&scratch) },
        &mut |_| (),
    )
    .unwrap();
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let layer = "input_blocks.3.0.skip_connection";
    let (key, _) = &layers()[layer][0];
    let file = layout::open_file(&file(), &mut Vec::new()).unwrap();
    let name = format!("model_ema.diffusion_model{}act_funcb", layer.replace('.', ""));
    let offset = file.read(&name).unwrap()[0];
    for point in curve(&packed, key) {
        assert_eq!(point[2], 6.0 - offset / point[1]);
    }
    drop(packed);
    assert_eq!(compare(&scratch, "offset/"), 2);
}

#[test]
fn what_does_not_fit_is_told_in_one_line() {
    let scratch = Scratch::new("tdq-refused");
    let error = |options: Options| {
        let error = pack(&options, &mut |_| ()).unwrap_err().to_string();
        assert!(!error.contains('\n') && scratch.entries().is_empty(), "{error}");
        error
    };
    let told = error(Options { q_config: Some("w3a8".into()), ..options(&scratch) });
    assert!(told.contains(".n_lv of tdq.ckpt: expected 8 levels at most, as 3 bits have"), "{told}");
    let told = error(Options { q_config: Some("w4a8:kmeans".into()), ..options(&scratch) });
    assert!(told.contains("expected a configuration of uniform levels"), "{told}");
    let scratch = Scratch::new("tdq-generator");
    let told = |tensors: &[(&str, Dtype, &[usize])]| {
        let other = scratch.path("other.safetensors");
        write(&other, &[&[("n_lv", Dtype::I64, &[][..])], tensors].concat());
        let error = pack(&Options { import: Some(other), ..options(&scratch) }, &mut |_| ()).unwrap_err().to_string();
        assert!(!error.contains('\n') && scratch.entries() == ["other.safetensors"], "{error}");
        error
    };
    let layer: [(&str, Dtype, &[usize]); 4] = [
        ("act_func.n_lv", Dtype::I64, &[]),
        ("act_func.dynamic", Dtype::BOOL, &[1]),
        ("act_func.tdq_module.s_gen.0.weight", Dtype::F32, &[64, 128]),
        ("act_func.tdq_module.s_gen.0.bias", Dtype::F32, &[64]),
    ];
    let error = told(&layer);
    let expected = "s_gen.0.weight of other.safetensors: expected a generator for this model's 32 features of timesteps, \
                    got shape [64, 128]";
    assert!(error.ends_with(expected), "{error}");
    let short = [layer[0], layer[1], (layer[2].0, Dtype::F32, &[64, 32][..]), (layer[3].0, Dtype::F32, &[63])];
    assert!(told(&short).ends_with("s_gen.0.bias of other.safetensors: expected 64 numbers, got 63"));
    let error = told(&[layer[0], layer[1], (layer[2].0, Dtype::F32, &[64, 32]), layer[3]]);
    assert!(
        error.contains("s_gen.2.weight of other.safetensors: expected a layer of 64 inputs, got shape []"),
        "{error}"
    );
}

/// Writes tensors of a layer, all ones.
fn write(path: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let bytes = |dtype: Dtype| match dtype {
        Dtype::I64 => 15i64.to_le_bytes().to_vec(),
        Dtype::F32 => 1f32.to_le_bytes().to_vec(),
        _ => vec![1],
    };
    let all: Vec<_> = tensors
        .iter()
        .map(|&(name, dtype, shape)| {
            let name = format!("model.diffusion_model.input_blocks.3.0.skip_connection.{name}");
            (name, dtype, shape, bytes(dtype).repeat(shape.iter().product()))
        })
        .collect();
    let views = all.iter().map(|(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn axes_of_curves_are_timesteps() {
    let scratch = Scratch::new("tdq-axis");
    pack(&options(&scratch), &mut |_| ()).unwrap();
    let packed = Packed::open(scratch.path("m.aqt")).unwrap();
    let denoiser = packed.program(Role::Denoiser).unwrap();
    let curves = denoiser.nodes.iter().filter_map(|node| node.op.quantizes());
    let of_time =
        |spec: QuantizeSpec| matches!(spec.range, QuantizeRange::Curve(RangeCurve { axis: CurveAxis::Timestep, .. }));
    assert!(curves.filter(|spec| of_time(*spec)).count() > 40);
    assert!(packed.meta().quantization.config.ends_with("weights of tdq.ckpt (TDQ), activations in its ranges"));
}
