//! Runs a bound program on a back end.
//!
//! After [`Executor::bind`] nothing is allocated: the arena is as large as the plan said, and ops lie in lists by rate.
//! Each owns its arguments and the handles of its weights, so a model call walks one list and looks nothing up. The arena
//! holds the weights ([`Plan::ready`]), where those are copied to a device; what else is bound of the program shares them.
//!
//! The walk of one activation, call after call:
//!
//! ```text
//! Executor::step -> Backend::replay -> issue(op) -> Backend::linear(args, weight, bias) -> the arena
//! ```
//!
//! A program with [phases](crate::program::Phases) has lists per phase, over the same arena. A call picks them by its moment;
//! where the phase changes, the back end [forgets](Backend::forget) what it recorded, and what slower lists make is made
//! again unless all phases make the same.
//!
//! What is to come is another handle in a list:
//!
//! * *Adapters* (LoRA, a low-rank branch beside codes): handles of two small weights beside those of a linear op, in
//!   [`OpArgs::Linear`](crate::backend::args::OpArgs::Linear), added before its activation; the strength is read from the
//!   arena, not bound.
//! * *Observers* exist: [`Executor::observe`] shows every node of a call with its operands and its result.

mod issue;
mod moment;
mod observe;
mod prompt;
mod time;

pub use moment::Moment;
pub use observe::{Seen, SeenCodes};
pub use prompt::PromptInputs;
pub(crate) use prompt::table_rows;
pub use time::Timed;

use crate::backend::args::{ModelInputArgs, SamplerStepArgs, Slot};
use crate::backend::{Backend, Call, MemoryRules};
use crate::codec::layout::BLOB_ALIGN;
use crate::error::{Error, Result};
use crate::format::{Packed, TensorView};
use crate::plan::{self, Binding, Plan, Planned};
use crate::program::{InputKind, Program, QuantizeRange, RangeCurve, Rate, Role, Tensor};
use issue::issue;
use moment::Curve;

/// A program bound to dims, weights and memory.
pub struct Executor<'m, B: Backend> {
    backend: &'m B,
    program: &'m Program,
    plan: Plan,
    /// What is done in each phase.
    phases: Vec<Phase<'m, B>>,
    /// The phase of the last call.
    phase: usize,
    arena: B::Arena,
    /// Per input, the rows of the smallest table that it indexes.
    table_rows: Vec<usize>,
    moments: Vec<Moment>,
    /// One window of values to copy into the arena.
    staging: Vec<f32>,
    /// First call of the window that the tables hold.
    filled: Option<usize>,
    /// What the step that the back end may have recorded was made of.
    recorded: Option<(ModelInputArgs, SamplerStepArgs)>,
}

/// What is done in a phase of the program.
struct Phase<'m, B: Backend> {
    /// The plan's ops with the back end's handles of their tensors, by rate.
    ops: [Vec<Planned<B::Weight<'m>>>; 4],
    curves: Vec<(Curve<'m>, usize)>,
}

impl Plan {
    /// Plans the program of `role` without binding it: exact memory, and none of it allocated.
    ///
    /// # Errors
    /// [`Error::Request`] if the file has no such program, [`Error::Shape`] if it cannot take these dims.
    pub fn of_role<N: MemoryRules, D: AsRef<[u8]>>(
        rules: &N,
        packed: &Packed<D>,
        role: Role,
        binding: &Binding,
    ) -> Result<Self> {
        let types: Vec<_> = packed.tensors().iter().map(|t| t.ty()).collect();
        let (narrow, makes_codes) = (rules.narrow(), rules.makes_codes());
        let rules_of_plan = plan::Rules { narrow, makes_codes, workspace: &|op| rules.workspace(op) };
        let plan = plan::plan(packed.program(role)?, &types, binding, &rules_of_plan)?;
        let bytes = |tensor: Tensor| packed.tensors()[tensor.0 as usize].bytes.next_multiple_of(BLOB_ALIGN);
        let weights = plan.tensors().into_iter().map(bytes).sum();
        Ok(Plan { footprint: rules.footprint(plan.arena, weights), ..plan })
    }

    /// Brings the weights of the program to where its ops can read them. The plan must have been made for this file and back
    /// end.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails or has not the memory.
    pub fn ready<B: Backend, D: AsRef<[u8]>>(&self, backend: &B, packed: &Packed<D>) -> Result<B::Weights> {
        let tensors = self.tensors().into_iter().map(|tensor| backend.weight(packed.tensor(tensor.0 as usize)));
        backend.ready(&tensors.collect::<Result<Vec<_>>>()?)
    }
}

impl<'m, B: Backend> Executor<'m, B> {
    /// [`bind`](Self::bind) of a plan that is made here.
    ///
    /// # Errors
    /// Those of [`Plan::of_role`], [`Plan::ready`] and [`bind`](Self::bind).
    pub fn new<D: AsRef<[u8]>>(backend: &'m B, packed: &'m Packed<D>, role: Role, binding: Binding) -> Result<Self> {
        let plan = Plan::of_role(backend, packed, role, &binding)?;
        let weights = plan.ready(backend, packed)?;
        Self::bind(backend, packed, plan, &weights)
    }

    /// Binds a program of `packed` as `plan` says, which must have been made for this file and back end: allocates the
    /// arena, and computes what depends on shapes alone. `weights` are the program's, made [`ready`](Plan::ready) for this
    /// plan or another.
    ///
    /// # Errors
    /// [`Error::Request`] if the file has no such program or the system no memory, [`Error::Device`] if the device fails.
    pub fn bind<D: AsRef<[u8]>>(
        backend: &'m B,
        packed: &'m Packed<D>,
        plan: Plan,
        weights: &B::Weights,
    ) -> Result<Self> {
        let program = packed.program(plan.role)?;
        let mut handles = vec![None; packed.tensors().len()];
        let mut handle = |tensor: Tensor| -> Result<B::Weight<'m>> {
            let index = tensor.0 as usize;
            match handles[index] {
                Some(handle) => Ok(handle),
                None => Ok(*handles[index].insert(backend.weight(packed.tensor(index))?)),
            }
        };
        let mut phases = Vec::with_capacity(plan.phases.len());
        for planned in &plan.phases {
            let mut ops: [Vec<Planned<B::Weight<'m>>>; 4] = Default::default();
            for (bound, planned) in ops.iter_mut().zip(&planned.ops) {
                bound.reserve_exact(planned.len());
                for &Planned { node, op } in planned {
                    bound.push(Planned { node, op: op.try_map(&mut handle)? });
                }
            }
            let mut curves = Vec::new();
            for curve in &planned.curves {
                if let QuantizeRange::Curve(RangeCurve { points, axis, .. }) = curve.range
                    && let TensorView::F32(points) = packed.tensor(points.0 as usize)
                {
                    curves.push((Curve { axis, points }, curve.at));
                }
            }
            phases.push(Phase { ops, curves });
        }
        backend.prepare(plan.ops());
        let mut arena = backend.arena(plan.arena, weights)?;
        backend.load(&mut arena, |backend, arena| {
            let ops = phases.iter().flat_map(|phase: &Phase<'m, B>| phase.ops.iter().flatten());
            ops.for_each(|planned| issue(backend, arena, &planned.op));
        })?;
        let Binding { dims, calls, .. } = plan.binding;
        let identity: Vec<u32> = (0..dims.batch as u32).map(|i| i % dims.conditions as u32).collect();
        let staging = vec![0.0; plan.calls_per_fill * dims.conditions.max(2)];
        let moments = vec![Moment::default(); calls];
        let rows = |tensor: Tensor| packed.tensors()[tensor.0 as usize].dims[0];
        let table_rows = table_rows(program, rows);
        let (filled, recorded) = (None, None);
        let mut executor = Executor {
            backend,
            program,
            plan,
            phases,
            phase: 0,
            arena,
            table_rows,
            moments,
            staging,
            filled,
            recorded,
        };
        executor.set_conditions(&identity)?;
        executor.run(Rate::Bind);
        Ok(executor)
    }

    /// Tells which condition each sample of the batch has; without this call, sample `i` has condition
    /// `i % conditions`.
    pub fn set_conditions(&mut self, condition_of_sample: &[u32]) -> Result<()> {
        let dims = &self.plan.binding.dims;
        let ok = condition_of_sample.len() == dims.batch
            && condition_of_sample.iter().all(|&c| (c as usize) < dims.conditions);
        if !ok {
            let expected = format!("{} numbers below {}", dims.batch, dims.conditions);
            return Err(Error::request("conditions of samples", expected, format!("{condition_of_sample:?}")));
        }
        self.backend.write_u32(&mut self.arena, self.plan.condition.at, condition_of_sample)
    }

    /// Sets the moment of every model call.
    ///
    /// # Errors
    /// [`Error::Request`] if there are not as many as the program was bound for.
    pub fn set_moments(&mut self, moments: impl ExactSizeIterator<Item = Moment>) -> Result<()> {
        if moments.len() != self.moments.len() {
            return Err(Error::request("timesteps", self.moments.len(), moments.len()));
        }
        self.moments.iter_mut().zip(moments).for_each(|(to, from)| *to = from);
        self.filled = None;
        Ok(())
    }

    /// [`set_moments`](Self::set_moments) of a whole run whose calls receive these timesteps.
    ///
    /// # Errors
    /// As there.
    pub fn set_timesteps(&mut self, timesteps: impl ExactSizeIterator<Item = f32>) -> Result<()> {
        let calls = self.moments.len() as f32;
        self.set_moments(timesteps.enumerate().map(|(i, timestep)| Moment { timestep, fraction: i as f32 / calls }))
    }

    /// Runs model call `call` on the sample input. Tables are filled when the call opens a new window.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn call(&mut self, call: usize) -> Result<()> {
        let call = self.open(call)?;
        self.backend.begin(&mut self.arena, call)?;
        self.run(Rate::Loop);
        Ok(())
    }

    /// One step of a sampling run: the model's input from the latents, model call `call`, and the sampler's row.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn step(&mut self, call: usize, input: &ModelInputArgs, sampler: &SamplerStepArgs) -> Result<()> {
        let call = self.open(call)?;
        if self.recorded.replace((*input, *sampler)) != Some((*input, *sampler)) {
            self.backend.forget(&mut self.arena);
        }
        let ops = &self.phases[self.phase].ops[Rate::Loop as usize];
        self.backend.replay(&mut self.arena, call, |backend, arena| {
            backend.model_input(arena, input);
            for planned in ops {
                issue(backend, arena, &planned.op);
            }
            backend.sampler_step(arena, sampler);
            Ok(())
        })
    }

    /// Enters the phase of `call`, and fills the tables if it is not in their window.
    fn open(&mut self, call: usize) -> Result<Call> {
        let moment = self.moments.get(call).copied().unwrap_or_default();
        let phases = &self.program.phases;
        let phase = phases.at(moment.on(phases.axis));
        if phase != self.phase {
            self.phase = phase;
            self.backend.forget(&mut self.arena);
            if !self.plan.alike {
                self.run(Rate::Bind);
                self.run(Rate::Prompt);
                self.filled = None;
            }
        }
        let call = Call { row: call % self.plan.calls_per_fill, step: call };
        if self.filled != Some(call.step - call.row) {
            self.fill(call.step - call.row)?;
        }
        Ok(call)
    }

    /// Fills the tables for the window of calls from `first`.
    fn fill(&mut self, first: usize) -> Result<()> {
        let (window, conditions) = (self.plan.calls_per_fill, self.plan.binding.dims.conditions);
        // The last window may be short; its spare rows repeat the last call and are never read.
        let last = self.moments.len().saturating_sub(1);
        let moment = |i: usize| self.moments[(first + i).min(last)];
        if let Some(value) = self.program.input(InputKind::Timestep) {
            for i in 0..window {
                self.staging[i * conditions..][..conditions].fill(moment(i).timestep);
            }
            let at = self.plan.inputs[value.0 as usize].at;
            self.backend.write_f32(&mut self.arena, at, &self.staging[..window * conditions])?;
        }
        for (curve, at) in &self.phases[self.phase].curves {
            for i in 0..window {
                self.staging[2 * i..2 * i + 2].copy_from_slice(&curve.at(moment(i)));
            }
            self.backend.write_f32(&mut self.arena, *at, &self.staging[..2 * window])?;
        }
        self.run(Rate::Step);
        self.filled = Some(first);
        Ok(())
    }

    /// Where the sample input lies; none if the program has none.
    pub fn sample(&self) -> Option<Slot> {
        self.program.input(InputKind::Sample).map(|value| self.plan.inputs[value.0 as usize])
    }

    /// Writes the sample input, `(n, h, w, c)`.
    ///
    /// # Errors
    /// [`Error::Request`] if the program has no such input or it takes another number of values.
    pub fn write_sample(&mut self, data: &[f32]) -> Result<()> {
        let at = self.place(InputKind::Sample, Some(data.len()))?;
        self.backend.write_f32(&mut self.arena, at, data)
    }

    /// Reads the result, `(n, h, w, c)`.
    ///
    /// # Errors
    /// [`Error::Request`] if it has another number of values, [`Error::Device`] if the device fails.
    pub fn read_output(&self, out: &mut [f32]) -> Result<()> {
        let Plan { output, .. } = self.plan;
        if out.len() != output.rows * output.cols {
            return Err(Error::request("room for the result", output.rows * output.cols, out.len()));
        }
        self.backend.read_f32(&self.arena, output.slot.at, out)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The program.
    pub fn program(&self) -> &'m Program {
        self.program
    }

    /// The back end and the arena, for what a pipeline does between calls.
    pub fn parts(&mut self) -> (&'m B, &mut B::Arena) {
        (self.backend, &mut self.arena)
    }

    fn run(&mut self, rate: Rate) {
        for planned in &self.phases[self.phase].ops[rate as usize] {
            issue(self.backend, &mut self.arena, &planned.op);
        }
    }
}
