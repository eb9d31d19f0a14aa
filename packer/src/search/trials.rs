//! Whole configurations, measured in the file of all choices.

use super::problem::{Objective, Problem, counted};
use crate::account::accounts;
use crate::error::Result;
use crate::sensitivity::{Choices, Layers, Record, layers_of, with_programs};
use aquatint::error::Error;
use aquatint::raw::backend::Clock;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::{Packed, TensorView};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::{Role, Tensor};
use aquatint::{Model, Session};
use aquatint_evaluation::{Baseline, Calls, File, Progress, Protocol};
use std::path::Path;

/// A model in all choices, as `packer sensitivity --keep` leaves it.
pub struct Trials {
    packed: Packed<FileBytes>,
    choices: Choices,
    layers: Vec<Layers>,
}

impl Trials {
    /// Opens the file of all choices that `record` was measured with.
    ///
    /// # Errors
    /// If it cannot be read, or is another file.
    pub fn open(path: &Path, record: &Record) -> Result<Self> {
        let packed = Packed::open(path)?;
        let hash = format!("{:032x}", packed.hash());
        if hash != record.model.hash {
            let expected =
                format!("the file that packer sensitivity --keep left of {}, {}", record.model.name, record.model.hash);
            let got = format!("one of {}, {hash}", packed.meta().pipeline.name);
            return Err(Error::request(path.display().to_string(), expected, got).into());
        }
        let choices = Choices::of(record);
        let layers = layers_of(&packed, &choices);
        Ok(Trials { packed, choices, layers })
    }

    /// The model in floats.
    pub fn float(&self) -> Packed<&[u8]> {
        with_programs(&self.packed, &|program| program.in_phase(0).into_owned())
    }

    /// The model with the layers of `problem` as `assignment` has them, and floats around them.
    pub fn assigned(&self, problem: &Problem, assignment: &[usize]) -> Packed<&[u8]> {
        let mut phases = vec![0; self.packed.tensors().len()];
        for layers in &self.layers {
            let layer = problem.layers.iter().position(|layer| layer.path == layers.unit.layers[0]);
            let phase = layer.map_or(0, |layer| self.choices.phase(assignment[layer]));
            layers.weights.iter().for_each(|weight| phases[weight.0 as usize] = phase);
        }
        with_programs(&self.packed, &|program| {
            let phase = |op| crate::pass::product(op).map_or(0, |(weight, ..)| phases[weight.0 as usize]);
            program.mixed(&program.nodes.iter().map(|node| phase(&node.op)).collect::<Vec<_>>())
        })
    }

    /// The model in which all layers are of one choice.
    pub fn uniform(&self, choice: usize) -> Packed<&[u8]> {
        with_programs(&self.packed, &|program| program.in_phase(self.choices.phase(choice)).into_owned())
    }

    /// The layer of `problem` that each node of a network is, if it is one.
    pub(super) fn layers_of_nodes(&self, problem: &Problem, role: Role) -> Result<Vec<Option<usize>>> {
        let layer = |weight: Tensor| {
            let own = self.layers.iter().find(|layers| layers.weights.contains(&weight))?;
            problem.layers.iter().position(|layer| layer.path == own.unit.layers[0])
        };
        let program = self.packed.program(role)?;
        let of = |op| crate::pass::product(op).and_then(|(weight, ..)| layer(weight));
        Ok(program.nodes.iter().map(|node| of(&node.op)).collect())
    }

    /// Squared errors of the weights, by layer of `problem` and choice.
    pub fn weight_errors(&self, problem: &Problem) -> Vec<Vec<f64>> {
        let mut errors: Vec<Vec<f64>> = problem.layers.iter().map(|layer| vec![0.0; layer.specs.len()]).collect();
        for layers in &self.layers {
            let square: f64 = match self.packed.tensor(layers.weights[0].0 as usize) {
                TensorView::F32(x) => x.iter().map(|&v| f64::from(v).powi(2)).sum(),
                TensorView::F16(x) => x.iter().map(|v| v.to_f64().powi(2)).sum(),
                TensorView::Codes(_) => 0.0,
            };
            if let Some(layer) = problem.layers.iter().position(|layer| layer.path == layers.unit.layers[0]) {
                for (error, probe) in errors[layer].iter_mut().zip(&layers.unit.choices) {
                    *error += square * probe.weight_error.unwrap_or(0.0).powi(2);
                }
            }
        }
        errors
    }
}

/// Measures configurations at states of the float model's own run.
pub struct Meter<'t> {
    trials: &'t Trials,
    problem: &'t Problem,
    baseline: Baseline,
    cpu: Cpu,
}

impl<'t> Meter<'t> {
    /// Makes the states that `record` was measured at, of `images` images from `seed` on. `protocol` says what else is not in a
    /// record: captions, and images per pass.
    ///
    /// # Errors
    /// If the protocol does not fit the model.
    pub fn new(
        trials: &'t Trials,
        problem: &'t Problem,
        record: &Record,
        objective: Objective,
        protocol: &Protocol,
        see: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let counted = counted(record, objective);
        let calls = Calls::At(counted.iter().map(|&i| record.conditions.calls[i].call).collect());
        let protocol = Protocol { calls, ..protocol.clone() };
        let (float, cpu) = (trials.float(), Cpu::best());
        let model = Model::new(&float)?;
        let file = File { name: record.model.name.clone(), model: &model };
        let baseline = Baseline::new(&cpu, &file, &protocol, &mut |Progress { done, total }| see(done, total))?;
        Ok(Meter { trials, problem, baseline, cpu })
    }

    /// The squared relative error of the output of each image, the mean over calls.
    ///
    /// # Errors
    /// Those of [`Session::predict`].
    pub fn errors(&self, assignment: &[usize]) -> Result<Vec<f64>> {
        let packed = self.trials.assigned(self.problem, assignment);
        let model = Model::new(&packed)?;
        let mut session = Session::new(&model, &self.cpu);
        let by_call = self.baseline.errors(&mut session, &mut |_| true)?.unwrap_or_default();
        let image = |i: usize| by_call.iter().map(|images| images[i]).sum::<f64>() / by_call.len() as f64;
        Ok((0..self.baseline.images).map(image).collect())
    }

    /// Seconds of each node of the denoiser in the model in which all layers are of `choice`, the least of `rounds`.
    ///
    /// # Errors
    /// Those of [`Session::time`].
    pub(super) fn seconds(&self, packed: &Packed<&[u8]>, rounds: usize, clock: Clock) -> Result<Vec<f64>> {
        let Some((request, call)) = self.baseline.call() else { return Ok(Vec::new()) };
        let model = Model::new(packed)?;
        let mut session = Session::new(&model, &self.cpu);
        let mut seconds = vec![f64::INFINITY; packed.program(call.role)?.nodes.len()];
        for _ in 0..rounds {
            session.time(request, &call, clock, |timed| {
                seconds[timed.node] = timed.seconds.min(seconds[timed.node]);
            })?;
        }
        seconds.iter_mut().filter(|seconds| seconds.is_infinite()).for_each(|seconds| *seconds = 0.0);
        Ok(seconds)
    }

    /// The file of all choices.
    pub(super) fn trials(&self) -> &Trials {
        self.trials
    }

    /// The network whose calls are measured.
    pub(super) fn role(&self) -> Option<Role> {
        self.baseline.call().map(|(_, call)| call.role)
    }

    /// Bit operations of a call of the denoiser as Qua2SeDiMo counts them, in tera.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn bops(&self, assignment: &[usize]) -> Result<f64> {
        let accounts = accounts(&self.trials.assigned(self.problem, assignment))?;
        Ok(accounts.first().map_or(0.0, |account| account.qua2sedimo_tera_bit_operations as f64))
    }

    /// The mean of [`errors`](Self::errors).
    ///
    /// # Errors
    /// As there.
    pub fn error(&self, assignment: &[usize]) -> Result<f64> {
        let errors = self.errors(assignment)?;
        Ok(errors.iter().sum::<f64>() / errors.len().max(1) as f64)
    }
}
