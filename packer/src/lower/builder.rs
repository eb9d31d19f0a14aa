//! Typed steps that append an op to a program and register the weights it uses.
//!
//! Weights keep the checkpoint's names. What the builder adds is where they lie in the file: convolution kernels turn
//! from `(o, i, h, w)` to `(o, h, w, i)`, everything else stays as it is.

use aquatint::program::{Act, Columns, Input, Modulation, Node, Op, Program, Role, Sampling, Tensor, Value};

/// How a weight may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Always plain f32: biases and norm parameters.
    Vector,
    /// Plain f16 or f32: lookup tables.
    Table,
    /// A linear layer's matrix: quantizable.
    Linear,
    /// A convolution's kernel: quantizable.
    Conv,
}

/// One weight of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// The component's folder in the model directory.
    pub component: &'static str,
    /// Name in the component's checkpoint.
    pub key: String,
    /// Axes in the checkpoint; four axes are `(o, i, h, w)`.
    pub source_dims: Vec<usize>,
    /// Axes in the file; four axes are `(o, h, w, i)`.
    pub dims: Vec<usize>,
    /// How it may be stored.
    pub storage: Storage,
    /// Names under which the checkpoint stores the same tensor again.
    pub copies: Vec<String>,
}

impl Weight {
    /// Name in the file: `component/key`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.component, self.key)
    }

    /// Whether it belongs to a layer that can be quantized.
    pub fn quantizable(&self) -> bool {
        matches!(self.storage, Storage::Linear | Storage::Conv)
    }

    /// The layer's module path, as quantization configurations name it.
    pub fn layer(&self) -> &str {
        layer_of(&self.key)
    }

    /// Module paths of the copies.
    pub fn copied_layers(&self) -> impl Iterator<Item = &str> {
        self.copies.iter().map(|key| layer_of(key))
    }

    /// Output channels and inputs per output channel.
    pub fn matrix(&self) -> (usize, usize) {
        (self.dims[0], self.dims[1..].iter().product())
    }
}

fn layer_of(key: &str) -> &str {
    key.strip_suffix(".weight").unwrap_or(key)
}

/// What a linear layer does after its product; see [`Op::Linear`].
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    /// Whether there is a bias.
    pub bias: bool,
    /// Activation.
    pub act: Act,
    /// Gate.
    pub gate: Option<Columns>,
    /// Residual.
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
    pub sampling: Sampling,
    /// Added per sample and channel.
    pub shift: Option<Columns>,
    /// Residual.
    pub residual: Option<Value>,
}

/// Builds one program.
pub struct Builder<'a> {
    component: &'static str,
    program: Program,
    weights: &'a mut Vec<Weight>,
}

impl<'a> Builder<'a> {
    /// An empty program of `role`; its weights come from `component` and are appended to `weights`.
    pub fn new(role: Role, component: &'static str, inputs: Vec<Input>, weights: &'a mut Vec<Weight>) -> Self {
        let program = Program { role, inputs, nodes: Vec::new(), output: Value(0) };
        Builder { component, program, weights }
    }

    /// The finished program with result `output`.
    pub fn finish(mut self, output: Value) -> Program {
        self.program.output = output;
        self.program
    }

    /// Appends `op`; `path` is the module it stands for.
    pub fn push(&mut self, path: &str, op: Op) -> Value {
        self.program.nodes.push(Node { op, path: path.to_owned(), wide: false });
        self.program.value_of(self.program.nodes.len() - 1)
    }

    /// Marks the node that makes `value` as wide; returns `value`.
    pub fn wide(&mut self, value: Value) -> Value {
        if let Some(node) = self.program.node_of(value) {
            self.program.nodes[node].wide = true;
        }
        value
    }

    fn weight(&mut self, key: String, source_dims: &[usize], storage: Storage) -> Tensor {
        let dims = match *source_dims {
            [o, i, h, w] => vec![o, h, w, i],
            _ => source_dims.to_vec(),
        };
        let source_dims = source_dims.to_vec();
        let weight = Weight { component: self.component, key, source_dims, dims, storage, copies: Vec::new() };
        self.weights.push(weight);
        Tensor(self.weights.len() as u32 - 1)
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
        self.push(path, Op::Linear { x, weight, bias, act, gate, residual })
    }

    /// A 3x3 convolution at module `path` from `i` to `o` channels.
    pub fn conv(&mut self, path: &str, x: Value, [i, o]: [usize; 2], with: Conv) -> Value {
        let weight = self.weight(format!("{path}.weight"), &[o, i, 3, 3], Storage::Conv);
        let bias = Some(self.vector(format!("{path}.bias"), o));
        let Conv { sampling, shift, residual } = with;
        self.push(path, Op::Conv2d { x, weight, bias, sampling, shift, residual })
    }

    /// A layer norm without parameters, modulated.
    pub fn layer_norm(&mut self, path: &str, x: Value, eps: f32, modulation: Modulation) -> Value {
        let modulation = Some(modulation);
        self.push(path, Op::LayerNorm { x, weight: None, bias: None, eps, modulation, quantize: None })
    }

    /// A group norm of `channels` channels at module `path`, then `act`.
    pub fn group_norm(&mut self, path: &str, x: Value, channels: usize, groups: u32, eps: f32, act: Act) -> Value {
        let weight = self.vector(format!("{path}.weight"), channels);
        let bias = self.vector(format!("{path}.bias"), channels);
        self.push(path, Op::GroupNorm { x, weight, bias, groups, eps, act, quantize: None })
    }

    /// Rows `index` of a table of `rows` by `d` at module `path`.
    pub fn embedding(&mut self, path: &str, index: Value, rows: usize, d: usize) -> Value {
        let table = self.weight(format!("{path}.weight"), &[rows, d], Storage::Table);
        self.push(path, Op::Embedding { index, table })
    }

    /// Records that the checkpoint stores every weight below module `path` again under each of `others`.
    pub fn copies(&mut self, path: &str, others: &[String]) {
        for weight in self.weights.iter_mut().filter(|w| w.component == self.component) {
            if let Some(rest) = weight.key.strip_prefix(path) {
                weight.copies = others.iter().map(|other| format!("{other}{rest}")).collect();
            }
        }
    }
}
