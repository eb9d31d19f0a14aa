//! Runs a bound program on a back end.
//!
//! After [`Executor::bind`] nothing is allocated: the arena is as large as the plan said, ops and their arguments are
//! in lists by rate, and a model call walks one list.

use crate::backend::args::{Element, Floats, ModelInputArgs, OpArgs, SamplerStepArgs, Slot};
use crate::backend::{Backend, Call, Needs};
use crate::error::{Error, Result};
use crate::format::{Packed, TensorView};
use crate::plan::{self, Plan, Planned, Shape};
use crate::program::{
    Conv2d, CurveAxis, Embedding, GatedLinear, GroupNorm, InputKind, LayerNorm, Linear, Op, Parameter, Program,
    QuantizeRange, Rate, Role, Tensor, VectorQuantize,
};

/// A program bound to dims, weights and memory.
pub struct Executor<'m, B: Backend> {
    backend: &'m mut B,
    program: &'m Program,
    plan: Plan,
    shape: Shape,
    weights: Vec<Option<B::Weight<'m>>>,
    curves: Vec<(Curve<'m>, usize)>,
    arena: B::Arena,
    /// Per input, the rows of the smallest table that it indexes.
    table_rows: Vec<usize>,
    timesteps: Vec<f32>,
    /// One window of values to copy into the arena.
    staging: Vec<f32>,
    /// First call of the window that the tables hold.
    filled: Option<usize>,
}

/// What a prompt gives a program: all inputs of [`Rate::Prompt`] that the program declares, and no others.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptInputs<'a> {
    /// The class of each condition.
    pub class_labels: Option<&'a [u32]>,
    /// Features of the prompt's tokens, `(conditions, t, d)`.
    pub context: Option<&'a [f32]>,
    /// One vector per condition, `(conditions, d)`.
    pub pooled: Option<&'a [f32]>,
    /// Numbers beside the prompt, `(conditions, k)`.
    pub sizes: Option<&'a [f32]>,
}

/// Scale and zero point over time.
struct Curve<'m> {
    axis: CurveAxis,
    /// Rows of (position, scale, zero), positions ascending.
    points: &'m [f32],
}

impl Curve<'_> {
    fn at(&self, timestep: f32, fraction: f32) -> [f32; 2] {
        let position = if self.axis == CurveAxis::Timestep { timestep } else { fraction };
        let n = self.points.chunks_exact(3).take_while(|p| p[0] <= position).count().max(1);
        [self.points[3 * n - 2], self.points[3 * n - 1]]
    }
}

/// Plans the program of `role` without binding it: exact memory, no allocation of it.
pub fn plan<N: Needs, D: AsRef<[u8]>>(needs: &N, packed: &Packed<D>, role: Role, shape: &Shape) -> Result<Plan> {
    let types: Vec<_> = packed.tensors().iter().map(|t| t.ty()).collect();
    plan::plan(packed.program(role)?, &types, shape, needs.narrow(), &|op| needs.workspace(op))
}

impl<'m, B: Backend> Executor<'m, B> {
    /// Binds the program of `role` to `shape`: works out the plan, allocates the arena, readies the weights, and
    /// computes what depends on shapes alone.
    ///
    /// # Errors
    /// [`Error::Request`] if the file has no such program, [`Error::Shape`] if it cannot take these dims.
    pub fn bind<D: AsRef<[u8]>>(backend: &'m mut B, packed: &'m Packed<D>, role: Role, shape: Shape) -> Result<Self> {
        let program = packed.program(role)?;
        let plan = plan(backend, packed, role, &shape)?;
        let mut weights = vec![None; packed.tensors().len()];
        let mut curves = Vec::new();
        for tensor in program.nodes.iter().flat_map(|n| n.op.tensors()) {
            let i = tensor.0 as usize;
            if weights[i].is_none() {
                weights[i] = Some(backend.weight(packed.tensor(i))?);
            }
        }
        for curve in &plan.curves {
            if let QuantizeRange::Curve(tensor, axis) = curve.range
                && let TensorView::F32(points) = packed.tensor(tensor.0 as usize)
            {
                curves.push((Curve { axis, points }, curve.at));
            }
        }
        backend.prepare(&mut plan.ops.iter().flatten().map(|p| &p.args));
        let arena = backend.arena(plan.arena)?;
        let identity: Vec<u32> = (0..shape.dims.batch as u32).map(|i| i % shape.dims.conditions as u32).collect();
        let staging = vec![0.0; plan.window * shape.dims.conditions.max(2)];
        let timesteps = vec![0.0; shape.calls];
        let rows = |tensor: Tensor| packed.tensors()[tensor.0 as usize].dims[0];
        let table_rows = table_rows(program, rows);
        let filled = None;
        let mut executor =
            Executor { backend, program, plan, shape, weights, curves, arena, table_rows, timesteps, staging, filled };
        executor.set_conditions(&identity)?;
        executor.run(Rate::Bind, 0);
        Ok(executor)
    }

    /// Tells which condition each sample of the batch has; without this call, sample `i` has condition
    /// `i % conditions`.
    pub fn set_conditions(&mut self, condition_of_sample: &[u32]) -> Result<()> {
        let dims = &self.shape.dims;
        let ok = condition_of_sample.len() == dims.batch
            && condition_of_sample.iter().all(|&c| (c as usize) < dims.conditions);
        if !ok {
            let expected = format!("{} numbers below {}", dims.batch, dims.conditions);
            return Err(Error::request("conditions of samples", expected, format!("{condition_of_sample:?}")));
        }
        self.backend.write_u32(&mut self.arena, self.plan.condition.at, condition_of_sample)
    }

    /// Sets all that a prompt gives and computes what depends on nothing else.
    ///
    /// # Errors
    /// [`Error::Request`] if an input is missing or the program has no such input, if a length is not that of the
    /// input, or if a class has no row in the table of classes. Nothing has changed then.
    pub fn set_prompt(&mut self, prompt: &PromptInputs<'_>) -> Result<()> {
        let floats = [
            (InputKind::Context, prompt.context),
            (InputKind::Pooled, prompt.pooled),
            (InputKind::Sizes, prompt.sizes),
        ];
        let labels_at = self.place(InputKind::ClassLabels, prompt.class_labels.map(<[u32]>::len))?;
        self.check_rows(InputKind::ClassLabels, prompt.class_labels.unwrap_or_default())?;
        let mut places = [0; 3];
        for (place, (kind, data)) in places.iter_mut().zip(floats) {
            *place = self.place(kind, data.map(<[f32]>::len))?;
        }
        if let Some(labels) = prompt.class_labels {
            self.backend.write_u32(&mut self.arena, labels_at, labels)?;
        }
        for (at, (_, data)) in places.into_iter().zip(floats) {
            if let Some(data) = data {
                self.backend.write_f32(&mut self.arena, at, data)?;
            }
        }
        self.run(Rate::Prompt, 0);
        self.filled = None;
        Ok(())
    }

    /// [`set_prompt`](Self::set_prompt) of a program for which the class of each condition is all of it.
    pub fn set_class_labels(&mut self, labels: &[u32]) -> Result<()> {
        self.set_prompt(&PromptInputs { class_labels: Some(labels), ..Default::default() })
    }

    /// Sets the tokens of a text encoder, `(n, t)`.
    ///
    /// # Errors
    /// [`Error::Request`] if the program takes no tokens or another number of them, or if one has no row in a table
    /// that it indexes. Nothing has changed then.
    pub fn set_tokens(&mut self, tokens: &[u32]) -> Result<()> {
        let at = self.place(InputKind::Tokens, Some(tokens.len()))?;
        self.check_rows(InputKind::Tokens, tokens)?;
        self.backend.write_u32(&mut self.arena, at, tokens)
    }

    /// The first byte of the input of this kind, if it takes `len` numbers; without an input, `len` must be none.
    fn place(&self, kind: InputKind, len: Option<usize>) -> Result<usize> {
        let Some(value) = self.program.input(kind) else {
            return match len {
                None => Ok(0),
                Some(len) => Err(Error::request(kind.name(), "none, as the model takes none", len)),
            };
        };
        let input = value.0 as usize;
        let axes = self.program.inputs[input].dims.iter().map(|&d| self.shape.dims.resolve(d));
        let wanted: usize = axes.product();
        match len {
            Some(len) if len == wanted => Ok(self.plan.inputs[input].at),
            Some(len) => Err(Error::request(kind.name(), wanted, len)),
            None => Err(Error::request(kind.name(), wanted, "none")),
        }
    }

    /// Checks that each row number given for the input of this kind is one of every table that the input indexes.
    fn check_rows(&self, kind: InputKind, numbers: &[u32]) -> Result<()> {
        let rows = self.program.input(kind).map_or(0, |value| self.table_rows[value.0 as usize]);
        match numbers.iter().find(|&&n| n as usize >= rows) {
            None => Ok(()),
            Some(n) => Err(Error::request(kind.name(), format!("numbers below {rows}"), n)),
        }
    }

    /// Sets the timestep of every model call.
    ///
    /// # Errors
    /// [`Error::Request`] if there are not as many as the program was bound for.
    pub fn set_timesteps(&mut self, timesteps: impl ExactSizeIterator<Item = f32>) -> Result<()> {
        if timesteps.len() != self.shape.calls {
            return Err(Error::request("timesteps", self.shape.calls, timesteps.len()));
        }
        for (to, from) in self.timesteps.iter_mut().zip(timesteps) {
            *to = from;
        }
        self.filled = None;
        Ok(())
    }

    /// Runs model call `call` on the sample input. Tables are filled when the call opens a new window.
    pub fn call(&mut self, call: usize) -> Result<()> {
        let call = self.open(call)?;
        self.backend.begin(&mut self.arena, call)?;
        self.run(Rate::Loop, call.window);
        Ok(())
    }

    /// Like [`call`](Self::call), telling `seen` the index of each node when it is done: for profiles.
    pub fn call_with(&mut self, call: usize, seen: &mut dyn FnMut(usize)) -> Result<()> {
        let call = self.open(call)?;
        self.backend.begin(&mut self.arena, call)?;
        for planned in &self.plan.ops[Rate::Loop as usize] {
            dispatch(self.backend, self.program, &self.weights, &mut self.arena, call.window, planned);
            self.backend.wait()?;
            seen(planned.node);
        }
        Ok(())
    }

    /// One step of a sampling run: the model's input from the latents, model call `call`, and the sampler's row.
    /// `input` and `sampler` must be the same for every call of a run.
    pub fn step(&mut self, call: usize, input: &ModelInputArgs, sampler: &SamplerStepArgs) -> Result<()> {
        let call = self.open(call)?;
        let (program, weights, ops) = (self.program, &self.weights, &self.plan.ops[Rate::Loop as usize]);
        self.backend.replay(&mut self.arena, call, |backend, arena| {
            backend.model_input(arena, call.run, input);
            for planned in ops {
                dispatch(backend, program, weights, arena, call.window, planned);
            }
            backend.sampler_step(arena, call.run, sampler);
            Ok(())
        })
    }

    /// Fills the tables if `call` is not in their window.
    fn open(&mut self, call: usize) -> Result<Call> {
        let call = Call { window: call % self.plan.window, run: call };
        if self.filled != Some(call.run - call.window) {
            self.fill(call.run - call.window)?;
        }
        Ok(call)
    }

    /// Fills the tables for the window of calls from `first`.
    fn fill(&mut self, first: usize) -> Result<()> {
        let (window, conditions) = (self.plan.window, self.shape.dims.conditions);
        // The last window may be short; its spare rows repeat the last call and are never read.
        let calls = |i: usize| (first + i).min(self.shape.calls.saturating_sub(1));
        if let Some(value) = self.program.input(InputKind::Timestep) {
            for i in 0..window {
                let t = self.timesteps[calls(i)];
                self.staging[i * conditions..][..conditions].fill(t);
            }
            let at = self.plan.inputs[value.0 as usize].at;
            self.backend.write_f32(&mut self.arena, at, &self.staging[..window * conditions])?;
        }
        for (curve, at) in &self.curves {
            for i in 0..window {
                let fraction = calls(i) as f32 / self.shape.calls as f32;
                let range = curve.at(self.timesteps[calls(i)], fraction);
                self.staging[2 * i..2 * i + 2].copy_from_slice(&range);
            }
            self.backend.write_f32(&mut self.arena, *at, &self.staging[..2 * window])?;
        }
        self.run(Rate::Step, 0);
        self.filled = Some(first);
        Ok(())
    }

    /// Runs the loop's ops of call `call` up to the node at module path `path`, and gives that node's floats: for
    /// traces and tests.
    ///
    /// # Errors
    /// [`Error::Request`] if no node of the loop has that path or its result is not f32.
    pub fn run_until(&mut self, call: usize, path: &str) -> Result<Vec<f32>> {
        let call = self.open(call)?;
        self.backend.begin(&mut self.arena, call)?;
        let last = self.plan.ops[Rate::Loop as usize].iter().rposition(|p| self.program.nodes[p.node].path == path);
        let result = |i: usize| self.plan.ops[Rate::Loop as usize][i].args.result();
        let wide = |y: &Floats| y.element == Element::F32;
        let Some((last, y)) = last.and_then(|i| result(i).filter(wide).map(|y| (i, y))) else {
            return Err(Error::request("node", "a module path in the loop with an f32 result", path));
        };
        for planned in &self.plan.ops[Rate::Loop as usize][..=last] {
            dispatch(self.backend, self.program, &self.weights, &mut self.arena, call.window, planned);
        }
        let mut out = vec![0.0; y.rows * y.cols];
        self.backend.read_f32(&self.arena, y.slot.at, &mut out)?;
        Ok(out)
    }

    /// Where the sample input lies, for [`Backend::model_input`].
    pub fn sample(&self) -> Slot {
        let value = self.program.input(InputKind::Sample).map_or(0, |v| v.0 as usize);
        self.plan.inputs[value]
    }

    /// Writes the sample input, `(n, h, w, c)`.
    pub fn write_sample(&mut self, data: &[f32]) -> Result<()> {
        let at = self.sample().at;
        self.backend.write_f32(&mut self.arena, at, data)
    }

    /// Reads the result, `(n, h, w, c)`.
    pub fn read_output(&self, out: &mut [f32]) -> Result<()> {
        self.backend.read_f32(&self.arena, self.plan.output.slot.at, out)
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
    pub fn parts(&mut self) -> (&B, &mut B::Arena) {
        (self.backend, &mut self.arena)
    }

    fn run(&mut self, rate: Rate, call: usize) {
        for planned in &self.plan.ops[rate as usize] {
            dispatch(self.backend, self.program, &self.weights, &mut self.arena, call, planned);
        }
    }
}

/// For each input, the rows of the smallest table that it indexes; without one, any number will do.
pub(crate) fn table_rows(program: &Program, rows: impl Fn(Tensor) -> usize) -> Vec<usize> {
    let mut least = vec![usize::MAX; program.inputs.len()];
    for node in &program.nodes {
        if let Op::Embedding(Embedding { index, table }) = node.op
            && let Some(least) = least.get_mut(index.0 as usize)
        {
            *least = rows(table).min(*least);
        }
    }
    least
}

/// Calls the back end's method for one op.
fn dispatch<B: Backend>(
    backend: &B,
    program: &Program,
    weights: &[Option<B::Weight<'_>>],
    arena: &mut B::Arena,
    call: usize,
    planned: &Planned,
) {
    // The shape rules let an op have only these tensors, required ones first; see `Op::tensors`.
    let weight = |t: Tensor| weights[t.0 as usize].as_ref();
    let bound = "every tensor of the program was readied when it was bound";
    match (&planned.args, &program.nodes[planned.node].op) {
        (
            OpArgs::Linear(a),
            &Op::Linear(Linear { weight: w, bias, .. }) | &Op::GatedLinear(GatedLinear { weight: w, bias, .. }),
        ) => {
            backend.linear(arena, call, a, weight(w).expect(bound), bias.and_then(weight));
        }
        (OpArgs::Conv2d(a), &Op::Conv2d(Conv2d { weight: w, bias, .. })) => {
            backend.conv2d(arena, call, a, weight(w).expect(bound), bias.and_then(weight));
        }
        (OpArgs::LayerNorm(a), &Op::LayerNorm(LayerNorm { weight: w, bias, .. })) => {
            backend.layer_norm(arena, call, a, w.and_then(weight), bias.and_then(weight));
        }
        (OpArgs::GroupNorm(a), &Op::GroupNorm(GroupNorm { weight: w, bias, .. })) => {
            backend.group_norm(arena, call, a, weight(w).expect(bound), weight(bias).expect(bound));
        }
        (OpArgs::Embedding(a), &Op::Embedding(Embedding { table, .. })) => {
            backend.embedding(arena, call, a, weight(table).expect(bound));
        }
        (OpArgs::VectorQuantize(a), &Op::VectorQuantize(VectorQuantize { table, .. })) => {
            backend.vector_quantize(arena, call, a, weight(table).expect(bound));
        }
        (OpArgs::Parameter(a), &Op::Parameter(Parameter { tensor })) => {
            backend.parameter(arena, call, a, weight(tensor).expect(bound));
        }
        (OpArgs::Resample(a), _) => backend.resample(arena, call, a),
        (OpArgs::Attention(a), _) => backend.attention(arena, call, a),
        (OpArgs::Pointwise(a), _) => backend.pointwise(arena, call, a),
        (OpArgs::Add(a), _) => backend.add(arena, call, a),
        (OpArgs::Concat(a), _) => backend.concat(arena, call, a),
        (OpArgs::Quantize(a), _) => backend.quantize(arena, call, a),
        (OpArgs::TimestepEmbedding(a), _) => backend.timestep_embedding(arena, call, a),
        (OpArgs::PositionEmbedding(a), _) => backend.position_embedding(arena, call, a),
        (OpArgs::Patch(a), _) => backend.patch(arena, call, a),
        (args, op) => unreachable!("{args:?} planned for {}", op.name()),
    }
}
