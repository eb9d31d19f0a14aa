//! Memory for a bound program: where every value lies, and the arguments of every op.
//!
//! The arena has two parts. The *kept* part holds what outlives the phase that makes it: inputs, results of slower
//! phases that faster ones read (tables among them, one block of rows per model call), the program's result, and
//! whatever the caller reserves. The *scratch* part is shared by all phases: two values overlap there only if their
//! lifetimes within a phase do not. The size of the arena is exact and known before anything runs.

use crate::backend::args::*;
use crate::codec::layout::round_up;
use crate::error::Result;
use crate::hoist;
use crate::program::shape::{Kind, TensorType, Type, infer};
use crate::program::{
    Add, Attention, Concat, Conv2d, Dims, Embedding, GatedLinear, GroupNorm, LayerNorm, Linear, Modulation, Op,
    Parameter, Patchify, Pointwise, PositionEmbedding, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec,
    Rate, Resample, Role, Tensor, TimestepEmbedding, Unpatchify, Value, VectorQuantize,
};

/// Alignment of everything in the arena.
pub const ALIGN: usize = 64;

/// What a program is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Symbolic axes.
    pub dims: Dims,
    /// Model calls per run.
    pub calls: usize,
    /// Most bytes for the tables of values that depend on the timestep; they are filled in windows of calls that fit.
    pub table_bytes: usize,
    /// Bytes the caller wants for itself, 64-byte aligned.
    pub reserve: usize,
}

/// A node's op with its arguments, and `T` for each of its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned<T> {
    /// Index of the node.
    pub node: usize,
    /// The op.
    pub op: OpArgs<T>,
}

/// A quantization whose scale comes from a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedCurve {
    /// The curve.
    pub range: QuantizeRange,
    /// First byte of its `(window, 2)` table of scales and zero points.
    pub at: usize,
}

/// The plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program's role.
    pub role: Role,
    /// What the program is bound to.
    pub binding: Binding,
    /// Ops of each rate, in program order; indexed by `Rate as usize`.
    pub ops: [Vec<Planned<Tensor>>; 4],
    /// Bytes of arena.
    pub arena: usize,
    /// Bytes of the arena that hold tables.
    pub tables: usize,
    /// Calls per window of the tables.
    pub window: usize,
    /// First byte of each declared input.
    pub inputs: Vec<Slot>,
    /// The program's result.
    pub output: Floats,
    /// Axes of the result.
    pub output_type: Type,
    /// First byte of the u32 condition of each sample.
    pub condition: Slot,
    /// First byte of the caller's part.
    pub reserved: usize,
    /// Curves to resolve per call.
    pub curves: Vec<PlannedCurve>,
}

/// Bytes of a value.
fn bytes_of(ty: &Type, element: Element) -> usize {
    match ty.kind {
        Kind::Codes(q) => codes_of(ty, &q, Slot::default()).bytes(),
        _ => ty.len() * element.bytes(),
    }
}

/// How each value is stored if it is float. Narrow are values of the loop alone: inputs and the result cross to the
/// host as f32, and what is computed once for many calls costs too little to be worth an error. But keys and values of a
/// prompt are narrow, lest the loop's queries meet them in f32.
fn elements(program: &Program, rates: &[Rate], narrow: Element) -> Vec<Element> {
    let mut keys = vec![false; rates.len()];
    for (i, node) in program.nodes.iter().enumerate() {
        if let Op::Attention(Attention { k, v, .. }) = node.op
            && rates[program.value_of(i).0 as usize] == Rate::Loop
        {
            [k, v].into_iter().for_each(|x| keys[x.0 as usize] = rates[x.0 as usize] == Rate::Prompt);
        }
    }
    let element = |i: usize| match i.checked_sub(program.inputs.len()) {
        Some(node) if !program.nodes[node].wide && i != program.output.0 as usize => {
            if rates[i] == Rate::Loop || keys[i] { narrow } else { Element::F32 }
        }
        _ => Element::F32,
    };
    (0..program.n_values()).map(element).collect()
}

fn codes_of(ty: &Type, q: &QuantizeSpec, slot: Slot) -> Codes {
    let groups = match q.grain {
        QuantizeGrain::Row => ty.rows(),
        QuantizeGrain::Sample => ty.dims()[0],
    };
    Codes { slot, rows: ty.rows(), cols: ty.cols(), groups, bits: q.bits }
}

/// Types and places, as one phase sees them.
#[derive(Clone, Copy)]
struct View<'a> {
    program: &'a Program,
    rates: &'a [Rate],
    elements: &'a [Element],
    /// Types with one call's conditions.
    types: &'a [Type],
    /// Types with a whole window's conditions.
    tables: &'a [Type],
    places: &'a [usize],
    condition: Slot,
    conditions: usize,
    curve_at: &'a [usize],
}

impl View<'_> {
    /// The type and place of `value` for a node of rate `reader`.
    fn see(&self, value: Value, reader: Rate) -> (Type, Slot) {
        let i = value.0 as usize;
        let at = self.places[i];
        if self.rates[i] != Rate::Step {
            return (self.types[i], Slot { at, stride: 0 });
        }
        if reader == Rate::Step {
            return (self.tables[i], Slot { at, stride: 0 });
        }
        (self.types[i], Slot { at, stride: bytes_of(&self.types[i], self.elements[i]) })
    }

    fn floats(&self, value: Value, reader: Rate) -> Floats {
        let (ty, slot) = self.see(value, reader);
        Floats { slot, rows: ty.rows(), cols: ty.cols(), element: self.elements[value.0 as usize] }
    }

    fn input(&self, value: Value, reader: Rate) -> Input {
        let (ty, slot) = self.see(value, reader);
        match ty.kind {
            Kind::Codes(q) => Input::Codes(codes_of(&ty, &q, slot)),
            _ => Input::Floats(self.floats(value, reader)),
        }
    }

    fn op(&self, node: usize, workspace: usize) -> OpArgs<Tensor> {
        let own = self.program.value_of(node);
        let rate = self.rates[own.0 as usize];
        let f = |v: Value| self.floats(v, rate);
        let (ty, slot) = self.see(own, rate);
        let y = f(own);
        let workspace = Slot { at: workspace, stride: 0 };
        let samples = ty.dims()[0];
        let per_sample = |value: Value| PerSample {
            table: f(value),
            condition: self.condition,
            samples,
            rows_per_sample: ty.rows_per_sample(),
        };
        let to = |q: QuantizeSpec| QuantizeTo {
            codes: codes_of(&ty, &q, slot),
            grain: q.grain,
            fixed: matches!(q.range, QuantizeRange::Curve(..)).then(|| match rate {
                Rate::Step => {
                    FixedRange { table: Slot { at: self.curve_at[node], stride: 0 }, rows_per_entry: self.conditions }
                }
                _ => FixedRange { table: Slot { at: self.curve_at[node], stride: 8 }, rows_per_entry: ty.rows() },
            }),
        };
        let out = |q: Option<QuantizeSpec>| q.map_or(Output::Floats(y), |q| Output::Codes(to(q)));
        let modulate = |m: Modulation| (per_sample(m.value), m.scale as usize, m.shift as usize);
        match self.program.nodes[node].op {
            Op::Linear(Linear { x, weight, bias, act, gate, residual }) => {
                let gate = gate.map(|g| (per_sample(g.value), g.offset as usize));
                let residual = residual.map(f);
                let args = LinearArgs { x: self.input(x, rate), y, act, gated: false, gate, residual };
                OpArgs::Linear { args, weight, bias }
            }
            Op::GatedLinear(GatedLinear { x, weight, bias, act }) => {
                let args = LinearArgs { x: self.input(x, rate), y, act, gated: true, gate: None, residual: None };
                OpArgs::Linear { args, weight, bias }
            }
            Op::Conv2d(Conv2d { x, weight, bias, sampling, shift, residual }) => {
                let dims = self.see(x, rate).0;
                let (height, width) = (dims.dims()[1], dims.dims()[2]);
                let shift = shift.map(|s| (per_sample(s.value), s.offset as usize));
                let (x, residual) = (self.input(x, rate), residual.map(f));
                let args = Conv2dArgs { x, y, samples, height, width, sampling, shift, residual };
                OpArgs::Conv2d { args, weight, bias }
            }
            Op::Attention(Attention { q, k, v, heads, scale, attend }) => OpArgs::Attention(AttentionArgs {
                q: f(q),
                k: f(k),
                v: f(v),
                y,
                samples,
                heads: heads as usize,
                scale,
                causal: attend.causal,
                int8: attend.int8,
                condition: attend.per_condition.then_some(self.condition),
                keys: self.see(k, rate).0.rows_per_sample(),
                workspace,
            }),
            Op::LayerNorm(LayerNorm { x, weight, bias, eps, modulation, quantize }) => {
                let args = LayerNormArgs { x: f(x), y: out(quantize), eps, modulation: modulation.map(modulate) };
                OpArgs::LayerNorm { args, weight, bias }
            }
            Op::GroupNorm(GroupNorm { x, weight, bias, groups, eps, modulation, act, quantize }) => {
                let (x, y, groups) = (f(x), out(quantize), groups as usize);
                let modulation = modulation.map(modulate);
                let args = GroupNormArgs { x, y, samples, groups, eps, modulation, act, workspace };
                OpArgs::GroupNorm { args, weight, bias }
            }
            Op::Pointwise(Pointwise { x, act, mul, add }) => {
                OpArgs::Pointwise(PointwiseArgs { x: f(x), y, act, mul, add })
            }
            Op::Add(Add { a, b }) => OpArgs::Add(AddArgs { a: f(a), b: f(b), y }),
            Op::Concat(Concat { a, b }) => OpArgs::Concat(ConcatArgs { a: f(a), b: f(b), y }),
            Op::Quantize(Quantize { x, spec }) => OpArgs::Quantize(QuantizeArgs { x: f(x), y: to(spec), workspace }),
            Op::VectorQuantize(VectorQuantize { x, table }) => {
                OpArgs::VectorQuantize { args: VectorQuantizeArgs { x: f(x), y }, table }
            }
            Op::Resample(Resample { x, how }) => {
                let dims = self.see(x, rate).0;
                let (height, width) = (dims.dims()[1], dims.dims()[2]);
                OpArgs::Resample(ResampleArgs { x: f(x), y, samples, height, width, how })
            }
            Op::Parameter(Parameter { tensor }) => OpArgs::Parameter { args: ParameterArgs { y }, tensor },
            Op::Embedding(Embedding { index, table }) => {
                OpArgs::Embedding { args: EmbeddingArgs { index: self.see(index, rate).1, y }, table }
            }
            Op::TimestepEmbedding(TimestepEmbedding { t, dim, cos_first, shift }) => {
                let numbers = ty.cols() / dim as usize;
                OpArgs::TimestepEmbedding(TimestepEmbeddingArgs {
                    t: self.see(t, rate).1,
                    numbers,
                    y,
                    cos_first,
                    shift,
                })
            }
            Op::PositionEmbedding(PositionEmbedding { base, interpolation, .. }) => {
                OpArgs::PositionEmbedding(PositionEmbeddingArgs {
                    y,
                    height: ty.dims()[0],
                    width: ty.dims()[1],
                    base: base as usize,
                    interpolation,
                })
            }
            Op::Patchify(Patchify { x, patch }) => {
                let pixels = self.see(x, rate).0;
                OpArgs::Patch(self.patch(f(x), y, &pixels, patch, false))
            }
            Op::Unpatchify(Unpatchify { x, patch }) => OpArgs::Patch(self.patch(f(x), y, &ty, patch, true)),
        }
    }

    fn patch(&self, x: Floats, y: Floats, pixels: &Type, patch: u32, inverse: bool) -> PatchArgs {
        let [samples, height, width, channels] = *pixels.dims() else { unreachable!("checked by the shape rules") };
        PatchArgs { x, y, samples, height, width, channels, patch: patch as usize, inverse }
    }
}

/// Plans `program` for `binding`. `narrow` is how the back end stores values that may be narrow; `workspace` tells how
/// much scratch an op needs for itself there.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the program cannot take these dims.
pub fn plan(
    program: &Program,
    tensors: &[TensorType],
    binding: &Binding,
    narrow: Element,
    workspace: &dyn Fn(&OpArgs<Tensor>) -> usize,
) -> Result<Plan> {
    let rates = hoist::rates(program);
    let types = infer(program, tensors, &binding.dims)?;
    let elements = elements(program, &rates, narrow);
    let n_inputs = program.inputs.len();
    let node_rate = |node: usize| rates[n_inputs + node];

    // A value is kept if something of another (necessarily faster) rate reads it.
    let mut kept = vec![false; types.len()];
    kept[..n_inputs].fill(true);
    kept[program.output.0 as usize] = true;
    for (i, node) in program.nodes.iter().enumerate() {
        for v in node.op.reads().filter(|v| rates[v.0 as usize] != node_rate(i)) {
            kept[v.0 as usize] = true;
        }
    }

    let per_call: usize = (0..types.len())
        .filter(|&i| kept[i] && rates[i] == Rate::Step)
        .map(|i| round_up(bytes_of(&types[i], elements[i]), ALIGN))
        .sum();
    let calls = binding.calls.max(1);
    let window = binding.table_bytes.checked_div(per_call).map_or(calls, |fit| fit.clamp(1, calls));
    let conditions = binding.dims.conditions;
    // What becomes a table works row by row on rows of conditions, so only the first axis grows.
    let tables: Vec<Type> = types
        .iter()
        .zip(&rates)
        .map(|(ty, rate)| {
            let mut dims = ty.dims().to_vec();
            dims[0] *= if *rate == Rate::Step { window } else { 1 };
            Type::new(&dims, ty.kind)
        })
        .collect();
    let size = |i: usize| bytes_of(if rates[i] == Rate::Step { &tables[i] } else { &types[i] }, elements[i]);

    let mut end = 0;
    let mut bump = |bytes: usize| {
        let at = end;
        end = round_up(at + bytes, ALIGN);
        at
    };
    let reserved = bump(binding.reserve);
    let condition = Slot { at: bump(binding.dims.batch * 4), stride: 0 };
    let mut places = vec![0; types.len()];
    let mut table_bytes = 0;
    for i in (0..types.len()).filter(|&i| kept[i]) {
        places[i] = bump(size(i));
        table_bytes += if rates[i] == Rate::Step { size(i) } else { 0 };
    }
    let mut curve_at = vec![0; program.nodes.len()];
    let mut curves = Vec::new();
    for (i, node) in program.nodes.iter().enumerate() {
        if let Some(QuantizeSpec { range: range @ QuantizeRange::Curve(..), .. }) = node.op.quantizes() {
            curve_at[i] = bump(window * 8);
            curves.push(PlannedCurve { range, at: curve_at[i] });
        }
    }
    let kept_bytes = end;
    let view = View {
        program,
        rates: &rates,
        elements: &elements,
        types: &types,
        tables: &tables,
        places: &[],
        condition,
        conditions,
        curve_at: &curve_at,
    };

    // Scratch: per phase, each value lives from its node to its last reader; workspaces live during their node.
    let mut workspaces = vec![0; program.nodes.len()];
    let mut arena = kept_bytes;
    for rate in [Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop] {
        let nodes: Vec<usize> = (0..program.nodes.len()).filter(|&i| node_rate(i) == rate).collect();
        let mut blocks: Vec<Block> = Vec::new();
        let mut block_of = vec![None; types.len()];
        for (now, &node) in nodes.iter().enumerate() {
            for v in program.nodes[node].op.reads() {
                if let Some(b) = block_of[v.0 as usize] {
                    let b: &mut Block = &mut blocks[b];
                    b.last = now;
                }
            }
            let own = n_inputs + node;
            if !kept[own] {
                block_of[own] = Some(blocks.len());
                blocks.push(Block {
                    bytes: round_up(size(own), ALIGN),
                    first: now,
                    last: now,
                    at: 0,
                    of: Owner::Value(own),
                });
            }
            let bytes = workspace(&View { places: &places, ..view }.op(node, 0));
            if bytes > 0 {
                blocks.push(Block {
                    bytes: round_up(bytes, ALIGN),
                    first: now,
                    last: now,
                    at: 0,
                    of: Owner::Workspace(node),
                });
            }
        }
        arena = arena.max(kept_bytes + pack(&mut blocks));
        for b in blocks {
            match b.of {
                Owner::Value(v) => places[v] = kept_bytes + b.at,
                Owner::Workspace(n) => workspaces[n] = kept_bytes + b.at,
            }
        }
    }

    let view = View { places: &places, ..view };
    let mut ops: [Vec<Planned<Tensor>>; 4] = Default::default();
    for node in 0..program.nodes.len() {
        ops[node_rate(node) as usize].push(Planned { node, op: view.op(node, workspaces[node]) });
    }
    let inputs = (0..n_inputs).map(|i| view.see(Value(i as u32), Rate::Loop).1).collect();
    let output = view.floats(program.output, Rate::Loop);
    let output_type = types[program.output.0 as usize];
    Ok(Plan {
        role: program.role,
        binding: *binding,
        ops,
        arena,
        tables: table_bytes,
        window,
        inputs,
        output,
        output_type,
        condition,
        reserved,
        curves,
    })
}

enum Owner {
    Value(usize),
    Workspace(usize),
}

/// A stretch of scratch that is in use from op `first` to op `last` of a phase, both included.
struct Block {
    bytes: usize,
    first: usize,
    last: usize,
    at: usize,
    of: Owner,
}

/// Places blocks so that those alive together do not overlap; returns the bytes used.
///
/// Largest first, each at the lowest place that is free during its whole life: simple, and close to the maximum of
/// live bytes for the chains with residual streams that networks are.
fn pack(blocks: &mut [Block]) -> usize {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(blocks[i].bytes), blocks[i].first));
    let mut placed: Vec<usize> = Vec::new();
    let mut end = 0;
    for &i in &order {
        let (first, last, bytes) = (blocks[i].first, blocks[i].last, blocks[i].bytes);
        let mut at = 0;
        // `placed` is sorted by place, so one pass finds the first gap.
        for &j in &placed {
            let other = &blocks[j];
            let apart = other.last < first || last < other.first;
            if !apart && at < other.at + other.bytes {
                if at + bytes <= other.at {
                    break;
                }
                at = other.at + other.bytes;
            }
        }
        blocks[i].at = at;
        end = end.max(at + bytes);
        let slot = placed.partition_point(|&j| blocks[j].at < at);
        placed.insert(slot, i);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_alive_together_never_overlap() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut blocks: Vec<Block> = (0..rng.usize(1..40))
                .map(|i| {
                    let first = rng.usize(0..30);
                    let (last, bytes) = (first + rng.usize(0..6), 64 * rng.usize(1..9));
                    Block { bytes, first, last, at: 0, of: Owner::Value(i) }
                })
                .collect();
            let end = pack(&mut blocks);
            let mut live_most = 0;
            for now in 0..40 {
                live_most =
                    live_most.max(blocks.iter().filter(|b| b.first <= now && now <= b.last).map(|b| b.bytes).sum());
            }
            assert!(end >= live_most && end <= blocks.iter().map(|b| b.bytes).sum());
            for (i, a) in blocks.iter().enumerate() {
                assert!(a.at + a.bytes <= end);
                for b in &blocks[i + 1..] {
                    let apart_in_time = a.last < b.first || b.last < a.first;
                    let apart_in_space = a.at + a.bytes <= b.at || b.at + b.bytes <= a.at;
                    assert!(apart_in_time || apart_in_space);
                }
            }
        }
    }

    #[test]
    fn only_the_loop_and_keys_of_its_attention_are_narrow() {
        use crate::program::{Act, Attend, Dim, InputKind, Node, Role, Tensor};
        let input = |kind, dims: &[Dim]| crate::program::Input { kind, dims: dims.to_vec() };
        let linear = |x| {
            Op::Linear(Linear {
                x: Value(x),
                weight: Tensor(0),
                bias: None,
                act: Act::None,
                gate: None,
                residual: None,
            })
        };
        let attend = Attend { per_condition: true, ..Attend::default() };
        let ops = [
            linear(1), // 2: of the prompt, read by a product alone
            linear(2), // 3: keys
            linear(2), // 4: values, marked as wide
            linear(0), // 5: of the loop
            Op::Attention(Attention { q: Value(5), k: Value(3), v: Value(4), heads: 1, scale: 1.0, attend }),
        ];
        let node = |(i, op)| Node { op, path: "n".into(), wide: i == 2 };
        let program = Program {
            role: Role::Denoiser,
            inputs: vec![
                input(InputKind::Sample, &[Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)]),
                input(InputKind::Context, &[Dim::Conditions, Dim::Tokens, Dim::Fixed(8)]),
            ],
            nodes: ops.into_iter().enumerate().map(node).collect(),
            output: Value(6),
        };
        use Element::{F16, F32};
        assert_eq!(elements(&program, &hoist::rates(&program), F16), [F32, F32, F32, F16, F32, F16, F32]);
    }

    #[test]
    fn a_chain_needs_two_blocks() {
        let mut blocks: Vec<Block> =
            (0..10).map(|i| Block { bytes: 64, first: i, last: i + 1, at: 0, of: Owner::Value(i) }).collect();
        assert_eq!(pack(&mut blocks), 128);
    }
}
