//! Attention rounded to grids: where packing puts them, what it imports of Q-Diffusion's, and what it refuses.

use crate::common::{Scratch, fixture};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::exec::Executor;
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Attention, Dims, Op, Program, QuantizeRange, RangeCurve, Role, Round, Tensor, Value};
use aquatint::raw::rng::FastRng;
use packer::emit::{AttentionBits, Options, RangeSource, Report, pack};
use packer::source::Checkpoint;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn import(name: &str) -> PathBuf {
    fixture("imports").join(name)
}

fn options(scratch: &Scratch, model: &str, attention: AttentionBits) -> Options {
    Options {
        model: fixture(model),
        q_config: Some("w4a8".into()),
        attention,
        output: scratch.path("m.aqt"),
        ..Default::default()
    }
}

fn try_pack(options: &Options) -> packer::Result<(Report, Packed<FileBytes>)> {
    let report = pack(options, &mut |_| ())?;
    Ok((report, Packed::open(&options.output).unwrap()))
}

/// What makes a value, if that is a rounding.
fn rounding(program: &Program, value: Value) -> Option<Round> {
    match program.nodes[program.node_of(value)?].op {
        Op::Round(op) => Some(op),
        _ => None,
    }
}

fn attentions(program: &Program) -> impl Iterator<Item = (&str, Attention)> {
    program.nodes.iter().filter_map(|node| match node.op {
        Op::Attention(op) => Some((&node.path[..], op)),
        _ => None,
    })
}

#[test]
fn all_attentions_of_the_denoiser_have_the_grids() {
    let scratch = Scratch::new("grids");
    for model in ["dit/d2", "sd/v1"] {
        let bits = AttentionBits { operands: Some(6), softmax: Some(16) };
        let (_, packed) = try_pack(&options(&scratch, model, bits)).unwrap();
        for program in packed.programs() {
            let denoiser = program.role == Role::Denoiser;
            for (path, op) in attentions(program) {
                assert_eq!(
                    op.softmax.map(|grid| (grid.bits, grid.range)),
                    denoiser.then_some((16, QuantizeRange::Dynamic)),
                    "{path}"
                );
                for value in [op.q, op.k, op.v] {
                    let found = rounding(program, value).map(|round| (round.spec.bits, round.spec.range, round.parts));
                    assert_eq!(found, denoiser.then_some((6, QuantizeRange::Dynamic, op.heads)), "{path}");
                }
            }
        }
        let meta = &packed.meta().quantization;
        let words = "floats, queries, keys and values rounded to 6 bits, probabilities rounded to 16 bits";
        assert_eq!(meta.attention.as_deref(), Some(words));
        assert!(meta.config.ends_with(&format!(", attention in {words}")), "{}", meta.config);
    }
    let bits = AttentionBits { operands: None, softmax: Some(8) };
    let (_, packed) = try_pack(&options(&scratch, "dit/d2", bits)).unwrap();
    let denoiser = packed.program(Role::Denoiser).unwrap();
    assert!(denoiser.nodes.iter().all(|node| !matches!(node.op, Op::Round(_))));
    assert!(attentions(denoiser).all(|(_, op)| op.softmax.is_some_and(|grid| grid.bits == 8)));
}

/// The denoiser's result for two samples of noise.
fn first_call(packed: &Packed<FileBytes>) -> Vec<f32> {
    let [height, width] = packed.meta().pipeline.latent_size.map(|n| n as usize);
    let dims = Dims { batch: 2, conditions: 2, height, width, tokens: 1, ..Dims::ONE };
    let binding = Binding { dims, calls: 1, table_bytes: 1 << 20, reserve: 0 };
    let cpu = Cpu::new(Scalar);
    let mut executor = Executor::new(&cpu, packed, Role::Denoiser, binding).unwrap();
    executor.set_timesteps([400.0].into_iter()).unwrap();
    executor.set_class_labels(&[1, 2]).unwrap();
    let channels = packed.meta().pipeline.latent_channels as usize;
    let mut noise = vec![0.0; 2 * height * width * channels];
    FastRng::new(7).randn(&mut noise);
    executor.write_sample(&noise).unwrap();
    executor.call(0).unwrap();
    let mut out = vec![0.0; executor.plan().output_type.len()];
    executor.read_output(&mut out).unwrap();
    out
}

#[test]
fn rounding_attention_changes_what_comes_out_a_little() {
    let scratch = Scratch::new("grids-effect");
    let run = |bits: AttentionBits| {
        let options = Options { q_config: Some("f32".into()), ..options(&scratch, "dit/d2", bits) };
        let (_, packed) = try_pack(&options).unwrap();
        first_call(&packed)
    };
    let exact = run(AttentionBits::default());
    let off = |bits| {
        let got = run(bits);
        let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let difference = square(&mut got.iter().zip(&exact).map(|(a, b)| a - b));
        (difference / square(&mut exact.iter().copied())).sqrt()
    };
    let fine = off(AttentionBits { operands: None, softmax: Some(16) });
    let eight = off(AttentionBits { operands: Some(8), softmax: Some(8) });
    let six = off(AttentionBits { operands: Some(6), softmax: Some(8) });
    assert!(0.0 < fine && fine < 1e-4 && fine < eight && eight < six && six < 0.2, "{fine:e} {eight:e} {six:e}");
}

/// The point of a curve of one.
fn point(packed: &Packed<FileBytes>, range: QuantizeRange) -> Option<Vec<f32>> {
    let QuantizeRange::Curve(RangeCurve { points: Tensor(tensor), .. }) = range else { return None };
    let TensorView::F32(points) = packed.tensor(tensor as usize) else { panic!("floats") };
    Some(points.to_vec())
}

#[test]
fn ranges_of_attention_are_those_of_q_diffusions_file() {
    for (model, file, fixed) in
        [("sd/v1", "qdiffusion_attention.pth", 7), ("layouts/church.ckpt", "qdiffusion_church_attention.pth", 4)]
    {
        let scratch = Scratch::new("grids-import");
        let options = |symmetric| Options {
            q_config: Some("w4a8".into()),
            import: Some(import(file)),
            activation_ranges: Some(RangeSource::Import { symmetric }),
            ..options(&scratch, model, AttentionBits { operands: Some(8), softmax: Some(16) })
        };
        let theirs = Checkpoint::open_file(&import(file), &mut Vec::new()).unwrap();
        let theirs: BTreeMap<&str, f32> = theirs
            .keys()
            .filter(|key| key.contains("act_quantizer_"))
            .map(|key| (key, theirs.read(key).unwrap()[0]))
            .collect();
        let (report, packed) = try_pack(&options(None)).unwrap();
        let denoiser = packed.program(Role::Denoiser).unwrap();
        let mut found = 0;
        for (path, op) in attentions(denoiser) {
            let [q, k, v] = [op.q, op.k, op.v].map(|value| rounding(denoiser, value).unwrap().spec.range);
            for (name, range) in [("q", q), ("k", k), ("v", v), ("w", op.softmax.unwrap().range)] {
                let Some(got) = point(&packed, range) else { continue };
                // Latent diffusion's attention has the scale in queries and keys.
                let (block, shrink) = match (model, name) {
                    ("sd/v1", _) => (format!("model.{path}"), 1.0),
                    (_, "q" | "k") => ("model.output_blocks.4.1.attention.qkv_matmul".into(), op.scale.sqrt()),
                    _ => ("model.output_blocks.4.1.attention.smv_matmul".into(), 1.0),
                };
                let number = |what: &str| theirs[&format!("{block}.act_quantizer_{name}.{what}")[..]];
                assert_eq!(got, [0.0, number("delta") / shrink, number("zero_point")], "{path} {name}");
                found += 1;
            }
        }
        assert_eq!(found, fixed, "{model}");
        let all = 4 * attentions(denoiser).count();
        let note = format!("{} quantizers of attention are not in the imported file", all - fixed);
        assert!(report.notes.iter().any(|told| told.starts_with(&note)), "{:?}", report.notes);
        // Whoever says so has ranges that count from the middle.
        let (_, packed) = try_pack(&options(Some(true))).unwrap();
        let denoiser = packed.program(Role::Denoiser).unwrap();
        let q = attentions(denoiser).filter_map(|(_, op)| point(&packed, rounding(denoiser, op.q).unwrap().spec.range));
        assert!(q.collect::<Vec<_>>().iter().all(|point| point[2] == 128.0));
    }
}

#[test]
fn what_does_not_go_together_is_refused_in_one_line() {
    let scratch = Scratch::new("grids-refused");
    let refusal = |options: &Options| {
        let error = pack(options, &mut |_| ()).unwrap_err().to_string();
        assert!(!error.contains('\n') && scratch.entries().is_empty(), "{error}");
        error
    };
    let both = AttentionBits { operands: Some(8), softmax: Some(8) };
    let base = || options(&scratch, "sd/v1", both);
    let told = refusal(&Options { int8_attention: true, ..base() });
    assert!(told.contains("--softmax-bits: expected no --int8-attention"), "{told}");
    let told = refusal(&Options { attention: AttentionBits { operands: Some(4), softmax: None }, ..base() });
    assert!(told.contains("--qkv-bits: expected 6 or 8 bits of queries, keys and values; others need"), "{told}");
    // A file with ranges of layers alone.
    let import = Some(import("qdiffusion.pth"));
    let ranges = Some(RangeSource::Import { symmetric: None });
    let told = refusal(&Options { import, activation_ranges: ranges, ..base() });
    assert!(told.contains("expected --act-range import of a file with act_quantizer_q.delta of attention"), "{told}");
}
