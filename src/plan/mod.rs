//! Memory for a bound program: where every value lies, and the arguments of every op.
//!
//! The arena has two parts. The *kept* part holds what outlives the list of ops that makes it: inputs, results of slower
//! rates that faster ones read (tables among them, one block of rows per model call), the program's result, and
//! whatever the caller reserves. The *scratch* part is shared by the lists of all rates: two values overlap there only if
//! their lifetimes within a list do not. The size of the arena is exact and known before anything runs.
//!
//! A program with [phases](crate::program::Phases) has lists for each. They share one arena: what is kept has one place in
//! all of them, as large as the largest needs, so inputs and what the caller reserves stay where they are; what else is
//! kept is made again when a phase begins, unless all make the same.
//!
//! `values` says what each value is and how long it is kept, `places` where it lies, and `site` what an op sees of
//! both; how that becomes the arguments of an op stands in the file of the op's family.

mod attention;
mod conv;
mod embed;
mod layout;
mod linear;
mod norm;
mod places;
mod pointwise;
mod quantize;
mod resample;
mod rotary;
mod round;
mod site;
mod values;
mod vector_quantize;

use crate::backend::Footprint;
use crate::backend::args::{Element, Floats, OpArgs, Slot};
use crate::error::Result;
use crate::hoist;
use crate::program::shape::{TensorType, Type, infer};
use crate::program::{Dims, Program, QuantizeRange, Rate, Role, Tensor, Value};
use places::Places;
use site::{Site, args};
use std::collections::BTreeSet;
use std::convert::Infallible;
use values::Values;

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
    /// What is done in each phase of the program.
    pub phases: Vec<PhasePlan>,
    /// Whether all phases do the same but for the loop: then nothing is made again when one begins.
    pub alike: bool,
    /// Bytes of arena.
    pub arena: usize,
    /// What the back end takes for the program; of a plan that was made without a file, its arena.
    pub footprint: Footprint,
    /// Bytes of the arena that hold tables.
    pub tables: usize,
    /// Calls whose rows the tables hold at once: how many are worked out when tables are filled.
    pub calls_per_fill: usize,
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
}

impl Plan {
    /// All ops of all phases.
    pub fn ops(&self) -> impl Iterator<Item = &OpArgs<Tensor>> {
        self.phases.iter().flat_map(|phase| phase.ops.iter().flatten()).map(|planned| &planned.op)
    }

    /// The tensors that ops read, in the file's order.
    pub fn tensors(&self) -> BTreeSet<Tensor> {
        let mut tensors = BTreeSet::new();
        for op in self.ops() {
            let Ok(_) = op.try_map(|tensor| Ok::<_, Infallible>(tensors.insert(tensor)));
        }
        tensors
    }
}

/// What is done in one phase of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct PhasePlan {
    /// Ops of each rate, in program order, without those that the result does not depend on; indexed by `Rate as usize`.
    pub ops: [Vec<Planned<Tensor>>; 4],
    /// Curves to resolve per call.
    pub curves: Vec<PlannedCurve>,
}

impl PhasePlan {
    /// Whether `other` does the same before the loop.
    fn is_like(&self, other: &PhasePlan) -> bool {
        let slower =
            |phase: &PhasePlan| [Rate::Bind, Rate::Prompt, Rate::Step].map(|rate| phase.ops[rate as usize].clone());
        self.curves == other.curves && slower(self) == slower(other)
    }
}

/// What planning must know of a back end; see [`MemoryRules`](crate::backend::MemoryRules).
pub struct Rules<'a> {
    /// How values that may be narrow are stored.
    pub narrow: Element,
    /// Whether products can write codes.
    pub makes_codes: bool,
    /// How much scratch an op needs for itself.
    pub workspace: &'a dyn Fn(&OpArgs<Tensor>) -> usize,
}

/// Plans `program` for `binding` on a back end with these `rules`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the program cannot take these dims.
pub fn plan(program: &Program, tensors: &[TensorType], binding: &Binding, rules: &Rules<'_>) -> Result<Plan> {
    let programs: Vec<_> = (0..program.phases.count()).map(|phase| program.in_phase(phase)).collect();
    // One phase after the other, so that a fault in any of them is told.
    let mut values = Vec::with_capacity(programs.len());
    for program in &programs {
        let types = infer(program, tensors, &binding.dims)?;
        let mut own = Values::new(program, hoist::rates(program), types, rules.narrow);
        if rules.makes_codes {
            own.code_products();
        }
        values.push(own);
    }
    Values::share(&mut values, binding);
    let kept = Places::kept(&values, binding);
    let (mut arena, mut phases, mut first) = (0, Vec::with_capacity(values.len()), None);
    for values in &values {
        let mut places = kept.clone();
        let workspaces = places.scratch(values, rules.workspace);
        let mut ops: [Vec<Planned<Tensor>>; 4] = Default::default();
        let run = |node: usize| values.needed[node] && !values.is_made_before(node);
        for (node, &workspace) in workspaces.iter().enumerate().filter(|&(node, _)| run(node)) {
            let site = Site::new(values, &places, node, workspace);
            let op = args(&values.program.nodes[node].op, &site);
            ops[values.node_rate(node) as usize].push(Planned { node, op });
        }
        arena = arena.max(places.arena);
        phases.push(PhasePlan { ops, curves: places.planned_curves(values) });
        first.get_or_insert(places);
    }
    let (values, places) = (&values[0], first.as_ref().unwrap_or(&kept));
    let inputs = (0..program.inputs.len()).map(|i| places.slot(values, Value(i as u32), Rate::Loop)).collect();
    Ok(Plan {
        role: program.role,
        binding: *binding,
        alike: phases.iter().all(|phase| phase.is_like(&phases[0])),
        phases,
        arena,
        footprint: Footprint { arena, weights: 0 },
        tables: values.table_bytes(),
        calls_per_fill: values.window,
        inputs,
        output: places.floats(values, program.output, Rate::Loop),
        output_type: values.types[program.output.0 as usize],
        condition: places.condition,
        reserved: places.reserved,
    })
}
