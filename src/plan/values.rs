//! What every value of a bound program is: its type, its element, its rate, and whether it outlives its list of ops.

use super::{ALIGN, Binding};
use crate::backend::args::{Codes, Element, Slot};
use crate::program::shape::{Kind, Type};
use crate::program::{
    Attention, Dims, Op, Program, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, Rate, Reach, Value,
};

/// The values of a program, inputs first.
pub struct Values<'a> {
    /// The program.
    pub program: &'a Program,
    /// How often each changes.
    pub rates: Vec<Rate>,
    /// How each is stored, if it is float.
    pub elements: Vec<Element>,
    /// Types with one call's conditions.
    pub types: Vec<Type>,
    /// Types with a whole window's conditions.
    pub tables: Vec<Type>,
    /// Whether each outlives the list of ops that makes it, in any phase of the program.
    pub kept: Vec<bool>,
    /// Bytes of the place of each that is kept: what the phase takes that needs most.
    pub room: Vec<usize>,
    /// Which nodes the result depends on.
    pub needed: Vec<bool>,
    /// Of nodes whose only reader quantizes in a range that is known beforehand: that reader, whose codes they write
    /// themselves, and how.
    pub coded: Vec<Option<(usize, QuantizeSpec)>>,
    /// Calls per window of the tables.
    pub window: usize,
    /// Distinct conditions of one call.
    pub conditions: usize,
    /// Frames of a sample.
    pub frames: usize,
}

impl<'a> Values<'a> {
    /// The values of `program`, which has one phase and whose values have these rates and types.
    pub fn new(program: &'a Program, rates: Vec<Rate>, types: Vec<Type>, narrow: Element) -> Self {
        let elements = elements(program, &rates, narrow);
        let (kept, needed) = (kept(program, &rates), program.needed());
        let (tables, room, coded) = (Vec::new(), Vec::new(), vec![None; program.nodes.len()]);
        Values {
            program,
            rates,
            elements,
            types,
            tables,
            kept,
            room,
            needed,
            coded,
            window: 1,
            conditions: 1,
            frames: 1,
        }
    }

    /// Lets products of the loop write the codes that their only reader would make, where its ranges come from a curve.
    pub fn code_products(&mut self) {
        let program = self.program;
        let mut readers = vec![0; program.n_values()];
        for node in program.nodes.iter().enumerate().filter(|&(i, _)| self.needed[i]).map(|(_, node)| node) {
            node.op.reads().for_each(|value| readers[value.0 as usize] += 1);
        }
        for (reader, node) in program.nodes.iter().enumerate().filter(|&(i, _)| self.needed[i]) {
            let Op::Quantize(Quantize { x, spec, turn: None }) = node.op else { continue };
            let Some(made) = (x.0 as usize).checked_sub(program.inputs.len()) else { continue };
            let product = match program.nodes[made].op {
                Op::Linear(_) | Op::GatedLinear(_) => true,
                Op::Attention(Attention { softmax, reach, .. }) => softmax.is_none() && reach == Reach::Sample,
                _ => false,
            };
            let of_loop = [made, reader].iter().all(|&i| self.node_rate(i) == Rate::Loop);
            let known = matches!(spec.range, QuantizeRange::Curve(_));
            if product && of_loop && known && readers[x.0 as usize] == 1 && !self.kept[x.0 as usize] {
                self.coded[made] = Some((reader, spec));
            }
        }
    }

    /// Whether the result of a node is made by the one before it.
    pub fn is_made_before(&self, node: usize) -> bool {
        let Op::Quantize(Quantize { x, .. }) = self.program.nodes[node].op else { return false };
        let made = (x.0 as usize).checked_sub(self.program.inputs.len());
        made.is_some_and(|made| self.coded[made].is_some_and(|(reader, _)| reader == node))
    }

    /// Settles what the phases of one program have in common: what is kept, the room for it, and how many calls fill tables.
    pub fn share(phases: &mut [Self], binding: &Binding) {
        let n = phases.first().map_or(0, |values| values.types.len());
        let kept: Vec<bool> = (0..n).map(|i| phases.iter().any(|values| values.kept[i])).collect();
        let calls = binding.calls.max(1);
        let window = |values: &Self| {
            let per_call: usize = (0..n)
                .filter(|&i| kept[i] && values.rates[i] == Rate::Step)
                .map(|i| bytes_of(&values.types[i], values.elements[i]).next_multiple_of(ALIGN))
                .sum();
            binding.table_bytes.checked_div(per_call).map_or(calls, |fit| fit.clamp(1, calls))
        };
        let window = phases.iter().map(window).min().unwrap_or(1);
        for values in &mut *phases {
            // What becomes a table works row by row on rows of conditions, so only the first axis grows.
            let table = |(ty, rate): (&Type, &Rate)| {
                let mut dims = ty.dims().to_vec();
                dims[0] *= if *rate == Rate::Step { window } else { 1 };
                Type::new(&dims, ty.kind)
            };
            values.tables = values.types.iter().zip(&values.rates).map(table).collect();
            (values.kept, values.window) = (kept.clone(), window);
            let Dims { conditions, frames, .. } = values.program.dims(binding.dims);
            (values.conditions, values.frames) = (conditions, frames);
        }
        let room = |i: usize| phases.iter().map(|values| values.bytes(i)).max().unwrap_or(0);
        let room: Vec<usize> = (0..n).map(room).collect();
        phases.iter_mut().for_each(|values| values.room = room.clone());
    }

    /// The rate of what a node makes.
    pub fn node_rate(&self, node: usize) -> Rate {
        self.rates[self.program.inputs.len() + node]
    }

    /// Bytes of value `i` in the arena: of a table, those of its whole window.
    pub fn bytes(&self, i: usize) -> usize {
        let ty = if self.rates[i] == Rate::Step { &self.tables[i] } else { &self.types[i] };
        bytes_of(ty, self.elements[i])
    }

    /// Bytes of all tables.
    pub fn table_bytes(&self) -> usize {
        let is_table = |&i: &usize| self.kept[i] && self.rates[i] == Rate::Step;
        (0..self.types.len()).filter(is_table).map(|i| self.bytes(i)).sum()
    }

    /// The type of `value` for a node of rate `reader`: a whole table only for those that make tables.
    pub fn seen(&self, value: Value, reader: Rate) -> &Type {
        let i = value.0 as usize;
        if self.rates[i] == Rate::Step && reader == Rate::Step { &self.tables[i] } else { &self.types[i] }
    }

    /// Bytes from one call's part of `value` to the next call's, for a node of rate `reader`.
    pub fn stride(&self, value: Value, reader: Rate) -> usize {
        let i = value.0 as usize;
        let table = self.rates[i] == Rate::Step && reader != Rate::Step;
        if table { bytes_of(&self.types[i], self.elements[i]) } else { 0 }
    }
}

/// Which values are kept: inputs, the result, and what something of another (necessarily faster) rate reads.
fn kept(program: &Program, rates: &[Rate]) -> Vec<bool> {
    let mut kept = vec![false; rates.len()];
    kept[..program.inputs.len()].fill(true);
    kept[program.output.0 as usize] = true;
    for (i, node) in program.nodes.iter().enumerate() {
        let rate = rates[program.value_of(i).0 as usize];
        for v in node.op.reads().filter(|v| rates[v.0 as usize] != rate) {
            kept[v.0 as usize] = true;
        }
    }
    kept
}

/// How each value is stored if it is float. Narrow are values of the loop alone: inputs and the result cross to the host
/// as f32, and what is computed once for many calls costs too little to be worth an error. But keys and values of a
/// prompt are narrow, lest the loop's queries meet them in f32; and what is added to scores is wide, as those are.
fn elements(program: &Program, rates: &[Rate], narrow: Element) -> Vec<Element> {
    let mut keys = vec![false; rates.len()];
    let mut biases = vec![false; rates.len()];
    for (i, node) in program.nodes.iter().enumerate() {
        if let Op::Attention(Attention { k, v, bias, .. }) = node.op
            && rates[program.value_of(i).0 as usize] == Rate::Loop
        {
            [k, v].into_iter().for_each(|x| keys[x.0 as usize] = rates[x.0 as usize] == Rate::Prompt);
            bias.into_iter().for_each(|x| biases[x.0 as usize] = true);
        }
    }
    let element = |i: usize| match i.checked_sub(program.inputs.len()) {
        Some(node) if !program.nodes[node].wide && !biases[i] && i != program.output.0 as usize => {
            if rates[i] == Rate::Loop || keys[i] { narrow } else { Element::F32 }
        }
        _ => Element::F32,
    };
    (0..program.n_values()).map(element).collect()
}

/// Bytes of a value.
fn bytes_of(ty: &Type, element: Element) -> usize {
    match ty.kind {
        Kind::Codes(q) => codes_of(ty, &q, Slot::default()).bytes(),
        Kind::Float | Kind::Index => ty.len() * element.bytes(),
    }
}

/// The codes of a quantized value in `slot`.
pub fn codes_of(ty: &Type, q: &QuantizeSpec, slot: Slot) -> Codes {
    let groups = match q.grain {
        QuantizeGrain::Row => ty.rows(),
        QuantizeGrain::Sample => ty.dims()[0],
    };
    Codes { slot, rows: ty.rows(), cols: ty.cols(), groups, top: q.top() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hoist;

    #[test]
    fn only_the_loop_and_keys_of_its_attention_are_narrow() {
        use crate::program::{Act, Attend, Dim, InputKind, Linear, Node, Role, Tensor};
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
            Op::Attention(Attention {
                q: Value(5),
                k: Value(3),
                v: Value(4),
                heads: 1,
                scale: 1.0,
                attend,
                ..Attention::default()
            }),
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
            phases: Default::default(),
        };
        use Element::{F16, F32};
        assert_eq!(elements(&program, &hoist::rates(&program), F16), [F32, F32, F32, F16, F32, F16, F32]);
    }
}
