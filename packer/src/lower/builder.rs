//! Typed steps that append an op to a program and register the weights it uses.
//!
//! Weights keep the checkpoint's names. What the builder adds is the steps that bring them into the order in which ops read
//! them: convolution kernels turn from `(o, i, h, w)` to `(o, h, w, i)`, rows of gated layers go by turns, everything else
//! stays as it is.

use crate::weight::{Step, Storage, Weight, Weights};
use aquatint::raw::program::{
    self, Act, Columns, Conv2d, ConvStride, Embedding, GatedLinear, Input, LayerNorm, Modulation, Node, Op, Parameter,
    Program, Role, Tensor, Value, VectorQuantize,
};

/// What a linear layer does after its product; see [`Op::Linear`].
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Whether there is a bias.
    pub bias: bool,
    /// Applied to the product and bias.
    pub act: Act,
    /// Multiplies what the activation makes.
    pub gate: Option<Columns>,
    /// Added last.
    pub residual: Option<Value>,
}

impl Default for Linear {
    fn default() -> Self {
        Linear { bias: true, act: Act::None, gate: None, residual: None }
    }
}

/// What a convolution does beside its product; see [`Op::Conv2d`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Conv {
    /// How many pixels come out.
    pub sampling: ConvStride,
    /// A value of as many rows and columns as shall come out of upsampling.
    pub size_of: Option<Value>,
    /// Added per sample and channel.
    pub shift: Option<Columns>,
    /// Added last.
    pub residual: Option<Value>,
}

/// A group norm's settings; see [`Op::GroupNorm`].
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Number of groups.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Scales and shifts after the affine part.
    pub modulation: Option<Modulation>,
    /// Applied to the result, last.
    pub act: Act,
}

impl GroupNorm {
    /// A norm of `groups` groups and nothing after it.
    pub fn new(groups: u32, eps: f32) -> Self {
        GroupNorm { groups, eps, modulation: None, act: Act::None }
    }

    /// The same, then SiLU.
    pub fn silu(self) -> Self {
        GroupNorm { act: Act::Silu, ..self }
    }
}

/// Whether two tensors of a checkpoint, of these names, hold the same.
pub type Same<'a> = &'a dyn Fn(&str, &str) -> bool;

/// Builds one program.
pub struct Builder<'a> {
    component: &'static str,
    program: Program,
    weights: &'a mut Weights,
    /// Tells which weights are stored once; see [`Builder::sharing`].
    same: Option<Same<'a>>,
}

impl<'a> Builder<'a> {
    /// An empty program of `role`; its weights come from `component` and are appended to `weights`.
    pub fn new(role: Role, component: &'static str, inputs: Vec<Input>, weights: &'a mut Weights) -> Self {
        let program = Program { role, inputs, nodes: Vec::new(), output: Value(0), phases: Default::default() };
        Builder { component, program, weights, same: None }
    }

    /// The finished program with result `output`.
    pub fn finish(mut self, output: Value) -> Program {
        self.program.output = output;
        self.program
    }

    /// Appends `op`; `path` is the module it stands for.
    pub fn push(&mut self, path: &str, op: Op) -> Value {
        let before = || self.program.nodes.iter().position(|node| node.op == op);
        if let Some(node) = self.same.and_then(|_| before()) {
            return self.program.value_of(node);
        }
        self.program.nodes.push(Node { op, path: path.to_owned(), wide: false });
        self.program.value_of(self.program.nodes.len() - 1)
    }

    /// What `steps` appends, with weights of another component.
    pub fn of<T>(&mut self, component: &'static str, steps: impl FnOnce(&mut Self) -> T) -> T {
        let own = std::mem::replace(&mut self.component, component);
        let result = steps(self);
        self.component = own;
        result
    }

    /// What `steps` appends, as far as it is not there yet: a weight that is the `same` as one before is stored once,
    /// under the name of the first, and what was computed before of the same inputs and weights is not computed again.
    pub fn sharing<T>(&mut self, same: Same<'a>, steps: impl FnOnce(&mut Self) -> T) -> T {
        let outer = self.same.replace(same);
        let result = steps(self);
        self.same = outer;
        result
    }

    /// Marks the node that makes `value` as wide; returns `value`.
    pub fn wide(&mut self, value: Value) -> Value {
        if let Some(node) = self.program.node_of(value) {
            self.program.nodes[node].wide = true;
        }
        value
    }

    fn weight(&mut self, key: String, source_dims: &[usize], storage: Storage) -> Tensor {
        let weight = Weight::of_checkpoint(self.component, key, source_dims, storage);
        let Some(same) = self.same else { return self.weights.push(weight) };
        self.weights.share(weight, same)
    }

    fn interleaved(&mut self, key: String, source_dims: &[usize], storage: Storage) -> Tensor {
        let tensor = self.weight(key, source_dims, storage);
        self.weights[tensor].steps.push(Step::Interleave);
        tensor
    }

    /// A vector of `n` values, kept as f32.
    pub fn vector(&mut self, key: String, n: usize) -> Tensor {
        self.weight(key, &[n], Storage::Vector)
    }

    /// A linear layer at module `path` whose weight has axes `dims` in the checkpoint: `(o, k)`, or `(o, i, h, w)` for
    /// a convolution whose windows `x` holds as rows.
    pub fn linear(&mut self, path: &str, x: Value, dims: &[usize], with: Linear) -> Value {
        let weight = self.weight(format!("{path}.weight"), dims, Storage::Linear);
        let bias = with.bias.then(|| self.vector(format!("{path}.bias"), dims[0]));
        let Linear { act, gate, residual, .. } = with;
        self.push(path, Op::Linear(program::Linear { x, weight, bias, act, gate, residual }))
    }

    /// A gated linear layer at module `path` from `k` to `o` features, with biases. The checkpoint's first `o` rows make
    /// values, the others gates.
    pub fn gated_linear(&mut self, path: &str, x: Value, [k, o]: [usize; 2], act: Act) -> Value {
        let weight = self.interleaved(format!("{path}.weight"), &[2 * o, k], Storage::Linear);
        let bias = Some(self.interleaved(format!("{path}.bias"), &[2 * o], Storage::Vector));
        self.push(path, Op::GatedLinear(GatedLinear { x, weight, bias, act }))
    }

    /// A 3x3 convolution at module `path` from `i` to `o` channels.
    pub fn conv(&mut self, path: &str, x: Value, [i, o]: [usize; 2], with: Conv) -> Value {
        let weight = self.weight(format!("{path}.weight"), &[o, i, 3, 3], Storage::Conv);
        let bias = Some(self.vector(format!("{path}.bias"), o));
        let Conv { sampling, size_of, shift, residual } = with;
        self.push(path, Op::Conv2d(Conv2d { x, weight, bias, sampling, shift, residual, size_of }))
    }

    /// A layer norm of `d` features at module `path`.
    pub fn layer_norm(&mut self, path: &str, x: Value, d: usize, eps: f32) -> Value {
        self.shifted_layer_norm(path, x, d, eps, None)
    }

    /// A layer norm without parameters, modulated.
    pub fn adaptive_layer_norm(&mut self, path: &str, x: Value, eps: f32, modulation: Modulation) -> Value {
        let modulation = Some(modulation);
        self.push(
            path,
            Op::LayerNorm(LayerNorm { x, weight: None, bias: None, eps, modulation, ..LayerNorm::default() }),
        )
    }

    /// A layer norm of `d` features at module `path`, then perhaps a summand per sample and feature.
    pub fn shifted_layer_norm(&mut self, path: &str, x: Value, d: usize, eps: f32, shift: Option<Columns>) -> Value {
        let weight = Some(self.vector(format!("{path}.weight"), d));
        let bias = Some(self.vector(format!("{path}.bias"), d));
        self.push(path, Op::LayerNorm(LayerNorm { x, weight, bias, eps, shift, ..LayerNorm::default() }))
    }

    /// A norm of `d` features at module `path` that divides by the root of the mean square, and has no bias.
    pub fn rms_norm(&mut self, path: &str, x: Value, d: usize, eps: f32) -> Value {
        let weight = Some(self.vector(format!("{path}.weight"), d));
        self.push(path, Op::LayerNorm(LayerNorm { x, weight, eps, rms: true, ..LayerNorm::default() }))
    }

    /// A group norm of `channels` channels at module `path`, then `act`.
    pub fn group_norm(&mut self, path: &str, x: Value, channels: usize, with: GroupNorm) -> Value {
        let weight = self.vector(format!("{path}.weight"), channels);
        let bias = self.vector(format!("{path}.bias"), channels);
        let GroupNorm { groups, eps, modulation, act } = with;
        self.push(
            path,
            Op::GroupNorm(program::GroupNorm { x, weight, bias, groups, eps, modulation, act, quantize: None }),
        )
    }

    /// Rows `index` of a table of `rows` by `d` at module `path`.
    pub fn embedding(&mut self, path: &str, index: Value, rows: usize, d: usize) -> Value {
        let table = self.weight(format!("{path}.weight"), &[rows, d], Storage::Table);
        self.push(path, Op::Embedding(Embedding { index, table }))
    }

    /// A table called `key` of these axes, as a tensor.
    pub fn rows(&mut self, key: String, dims: [usize; 2]) -> Tensor {
        self.weight(key, &dims, Storage::Table)
    }

    /// The whole table called `key` of these axes; `path` is the module that reads it.
    pub fn parameter(&mut self, path: &str, key: String, dims: [usize; 2]) -> Value {
        let tensor = self.rows(key, dims);
        self.push(path, Op::Parameter(Parameter { tensor, ..Parameter::default() }))
    }

    /// The table called `key` of these axes as one row, in f32; `path` is the module that reads it.
    pub fn flat(&mut self, path: &str, key: String, dims: [usize; 2]) -> Value {
        let tensor = self.weight(key, &dims, Storage::Vector);
        self.push(path, Op::Parameter(Parameter { tensor, flat: true, ..Parameter::default() }))
    }

    /// What the linear layers at `paths` make of `x`, one after the other, without their residuals and gates: layers that are
    /// applied to several values.
    ///
    /// # Panics
    /// If there is no linear layer at one of them yet: a bug, since callers name what they appended.
    pub fn again(&mut self, paths: &[String], x: Value) -> Value {
        paths.iter().fold(x, |x, path| {
            let made = self.program.nodes.iter().find_map(|node| match node.op {
                Op::Linear(linear) if node.path == *path => Some(linear),
                _ => None,
            });
            let Some(linear) = made else { panic!("no linear layer at {path}") };
            self.push(path, Op::Linear(program::Linear { x, gate: None, residual: None, ..linear }))
        })
    }

    /// The whole table of `rows` by `d` at module `path`.
    pub fn table(&mut self, path: &str, rows: usize, d: usize) -> Value {
        self.parameter(path, format!("{path}.weight"), [rows, d])
    }

    /// The nearest of `rows` vectors of `d` at module `path`; `table` is the module that holds them.
    pub fn vector_quantize(&mut self, path: &str, table: &str, x: Value, rows: usize, d: usize) -> Value {
        let table = self.weight(format!("{table}.weight"), &[rows, d], Storage::Vector);
        self.push(path, Op::VectorQuantize(VectorQuantize { x, table }))
    }
}
