//! The inputs of a model's quantizable layers: which values they are, and what their rows are.

use super::sums::Rows;
use super::windows::{TAPS, Windows};
use aquatint::Result;
use aquatint::model::TEXT_ENCODERS;
use aquatint::raw::backend::args::OpArgs;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::{Packed, TensorKind};
use aquatint::raw::plan::{Binding, Plan, Planned};
use aquatint::raw::program::{ConvStride, Dims, Op, Program, Rate, Role, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What an input has rows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Each sample of a call.
    Sample,
    /// Each distinct condition.
    Condition,
    /// Nothing that changes.
    Shapes,
}

/// The input of one or more layers.
#[derive(Clone, Debug)]
pub struct LayerInput {
    /// The program.
    pub role: Role,
    /// The value.
    pub value: Value,
    /// A node that reads it; when it has run, the value is looked at.
    pub node: usize,
    /// How often that node runs.
    pub rate: Rate,
    /// What it has rows of.
    pub unit: Unit,
    /// Rows per unit; of a text encoder that reads texts at their own length, per token.
    pub unit_rows: usize,
    /// Whether it has a row for every token of a prompt, so that there are more for longer ones.
    pub by_token: bool,
    /// What rows are.
    pub rows: Rows,
}

/// All inputs, and which layers read them.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// In the order of programs and nodes.
    pub list: Vec<LayerInput>,
    /// By a weight's name in the file, its inputs: several if layers that read different values share it.
    pub layers: BTreeMap<String, Vec<usize>>,
}

/// How a layer looks at a value.
type Look = (Value, Option<(ConvStride, Option<Value>)>);

impl Inputs {
    /// Those of the denoisers and text encoders of `packed` for one sample of these `dims`. Moments of convolutions with more
    /// than `dense` values a row are kept by displacement.
    ///
    /// # Errors
    /// If a program cannot take this size.
    pub fn new<D: AsRef<[u8]>>(packed: &Packed<D>, dims: Dims, dense: usize) -> Result<Self> {
        let layers: BTreeSet<&str> = packed.meta().quantization.layers.iter().map(|l| l.name.as_str()).collect();
        let quantizable = |tensor: Tensor| {
            let info = &packed.tensors()[tensor.0 as usize];
            let layer = info.name.strip_suffix(".weight").unwrap_or(&info.name);
            (info.kind != TensorKind::Bytes && layers.contains(layer)).then_some(info.name.as_str())
        };
        let mut inputs = Inputs::default();
        for program in packed.programs().iter().filter(|p| !matches!(p.role, Role::VaeDecoder | Role::VaeEncoder)) {
            inputs.add(packed, program, &quantizable, (dims, dense))?;
        }
        Ok(inputs)
    }

    fn add<'a, D: AsRef<[u8]>>(
        &mut self,
        packed: &Packed<D>,
        program: &Program,
        quantizable: &dyn Fn(Tensor) -> Option<&'a str>,
        (dims, dense): (Dims, usize),
    ) -> Result<()> {
        let dims = if is_text(program.role) { text_dims(1, 1) } else { dims };
        let plan = |dims| {
            let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
            Plan::of_role(&Cpu::best(), packed, program.role, &binding)
        };
        let one = plan(dims)?;
        let more = plan(Dims { conditions: 2, ..dims })?;
        let longer = plan(Dims { tokens: dims.tokens + 1, ..dims })?;
        let mut known: Vec<Look> = Vec::new();
        let first = self.list.len();
        let rates = [Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop];
        let others = more.phases[0].ops.iter().zip(&longer.phases[0].ops);
        let all = rates.iter().zip(&one.phases[0].ops).zip(others);
        let mut nodes: Vec<_> = all
            .flat_map(|((&rate, ops), (more, longer))| {
                ops.iter().zip(more.iter().zip(longer)).map(move |(planned, others)| (rate, planned, others))
            })
            .collect();
        nodes.sort_by_key(|(_, planned, _)| planned.node);
        for (rate, Planned { node, op }, (more, longer)) in nodes {
            let Some((tensor, look)) = look(&program.nodes[*node].op) else { continue };
            let Some(name) = quantizable(tensor) else { continue };
            let index = first + known.iter().position(|known| *known == look).unwrap_or(known.len());
            if index == self.list.len() {
                known.push(look);
                let rows = rows(op, dense);
                let unit_rows = op.operands().next().map_or(0, |x| x.rows());
                let rows_of = |planned: &Planned<_>| planned.op.operands().next().map_or(0, |x| x.rows());
                let (doubled, by_token) = (rows_of(more) == 2 * unit_rows, rows_of(longer) > unit_rows);
                let unit = match (rate, doubled) {
                    (Rate::Bind, _) => Unit::Shapes,
                    (_, true) => Unit::Condition,
                    (_, false) => Unit::Sample,
                };
                let unit_rows = windows(&rows).map_or(unit_rows, Windows::count);
                self.list.push(LayerInput {
                    role: program.role,
                    value: look.0,
                    node: *node,
                    rate,
                    unit,
                    unit_rows,
                    by_token,
                    rows,
                });
            }
            let inputs = self.layers.entry(name.to_owned()).or_default();
            if !inputs.contains(&index) {
                inputs.push(index);
            }
        }
        Ok(())
    }

    /// The names of the layers that read input `index`.
    pub fn names(&self, index: usize) -> impl Iterator<Item = &str> {
        self.layers.iter().filter(move |(_, inputs)| inputs.contains(&index)).map(|(name, _)| name.as_str())
    }
}

/// Whether the program of `role` reads texts.
pub fn is_text(role: Role) -> bool {
    TEXT_ENCODERS.contains(&role)
}

/// What a text encoder is bound to for so many chunks; those of an encoder whose texts are of one length have that anyway.
pub fn text_dims(batch: usize, tokens: usize) -> Dims {
    Dims { batch, tokens, ..Dims::ONE }
}

/// The weight of a layer, and how it looks at its input.
fn look(op: &Op) -> Option<(Tensor, Look)> {
    match op {
        Op::Linear(op) => Some((op.weight, (op.x, None))),
        Op::GatedLinear(op) => Some((op.weight, (op.x, None))),
        Op::Conv2d(op) => Some((op.weight, (op.x, Some((op.sampling, op.size_of))))),
        Op::Attention(_)
        | Op::LayerNorm(_)
        | Op::GroupNorm(_)
        | Op::Pointwise(_)
        | Op::Add(_)
        | Op::Multiply(_)
        | Op::Quantize(_)
        | Op::Round(_)
        | Op::Embedding(_)
        | Op::TimestepEmbedding(_)
        | Op::PositionEmbedding(_)
        | Op::RelativeBias(_)
        | Op::Patchify(_)
        | Op::Unpatchify(_)
        | Op::Concat(_)
        | Op::Slice(_)
        | Op::PadRows(_)
        | Op::Rotary(_)
        | Op::VectorQuantize(_)
        | Op::Resample(_)
        | Op::Parameter(_) => None,
    }
}

fn rows<T>(op: &OpArgs<T>, dense: usize) -> Rows {
    match op {
        OpArgs::Conv2d { args, .. } => {
            let (channels, plane) = (args.x.cols(), [args.height, args.width]);
            let windows = Windows { channels, plane, out: args.out, sampling: args.sampling };
            if TAPS * channels <= dense { Rows::Windows(windows) } else { Rows::Displacements(windows) }
        }
        other => Rows::Own(other.operands().next().map_or(0, |x| x.cols())),
    }
}

fn windows(rows: &Rows) -> Option<&Windows> {
    match rows {
        Rows::Own(_) => None,
        Rows::Windows(windows) | Rows::Displacements(windows) => Some(windows),
    }
}
