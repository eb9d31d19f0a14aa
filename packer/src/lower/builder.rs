//! Typed steps that append an op to a program and register the weights it uses.
//!
//! Weights keep the checkpoint's names. What the builder adds is where they lie in the file: convolution kernels turn
//! from `(o, i, h, w)` to `(o, h, w, i)`, everything else stays as it is.

use aquatint::program::{
    self, Act, Columns, Conv2d, ConvStride, Embedding, GatedLinear, Input, LayerNorm, Modulation, Node, Op, Parameter,
    Program, Role, Tensor, Value, VectorQuantize,
};
use std::borrow::Cow;

/// How a weight may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Always plain f32: biases, norm parameters, and the vectors of a vector quantizer.
    Vector,
    /// Plain f16 or f32: lookup tables.
    Table,
    /// A linear layer's matrix: quantizable.
    Linear,
    /// A convolution's kernel: quantizable.
    Conv,
}

/// The order of a weight's rows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Rows {
    /// That of the checkpoint.
    #[default]
    AsIs,
    /// The checkpoint holds two halves of rows, the file one of each by turns: `0, o, 1, o + 1, ..`; see
    /// [`Op::GatedLinear`].
    Interleaved,
}

impl Rows {
    /// `values`, rows of `cols` in the checkpoint's order, in the file's.
    pub fn arrange<T: Copy>(self, values: &[T], cols: usize) -> Cow<'_, [T]> {
        match self {
            Rows::AsIs => Cow::Borrowed(values),
            Rows::Interleaved => {
                let (first, second) = values.split_at(values.len() / 2);
                let pairs = first.chunks_exact(cols).zip(second.chunks_exact(cols));
                Cow::Owned(pairs.flat_map(|(a, b)| a.iter().chain(b)).copied().collect())
            }
        }
    }

    /// The inverse of [`arrange`](Self::arrange).
    pub fn restore<T: Copy>(self, values: &[T], cols: usize) -> Cow<'_, [T]> {
        match self {
            Rows::AsIs => Cow::Borrowed(values),
            Rows::Interleaved => {
                let half = |skip| values.chunks_exact(cols).skip(skip).step_by(2).flatten().copied();
                Cow::Owned(half(0).chain(half(1)).collect())
            }
        }
    }
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
    /// The order of its rows in the file.
    pub rows: Rows,
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
    pub sampling: ConvStride,
    /// Added per sample and channel.
    pub shift: Option<Columns>,
    /// Residual.
    pub residual: Option<Value>,
}

/// A group norm's settings; see [`Op::GroupNorm`].
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Number of groups.
    pub groups: u32,
    /// Added to the variance.
    pub eps: f32,
    /// Modulation.
    pub modulation: Option<Modulation>,
    /// Applied last.
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

    /// What `steps` appends, with weights of another component.
    pub fn of<T>(&mut self, component: &'static str, steps: impl FnOnce(&mut Self) -> T) -> T {
        let own = std::mem::replace(&mut self.component, component);
        let result = steps(self);
        self.component = own;
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
        self.arranged(key, source_dims, storage, Rows::AsIs)
    }

    fn arranged(&mut self, key: String, source_dims: &[usize], storage: Storage, rows: Rows) -> Tensor {
        let dims = match *source_dims {
            [o, i, h, w] => vec![o, h, w, i],
            _ => source_dims.to_vec(),
        };
        let source_dims = source_dims.to_vec();
        let (component, copies) = (self.component, Vec::new());
        self.weights.push(Weight { component, key, source_dims, dims, storage, rows, copies });
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
        self.push(path, Op::Linear(program::Linear { x, weight, bias, act, gate, residual }))
    }

    /// A gated linear layer at module `path` from `k` to `o` features, with biases. The checkpoint's first `o` rows make
    /// values, the others gates.
    pub fn gated_linear(&mut self, path: &str, x: Value, [k, o]: [usize; 2], act: Act) -> Value {
        let rows = Rows::Interleaved;
        let weight = self.arranged(format!("{path}.weight"), &[2 * o, k], Storage::Linear, rows);
        let bias = Some(self.arranged(format!("{path}.bias"), &[2 * o], Storage::Vector, rows));
        self.push(path, Op::GatedLinear(GatedLinear { x, weight, bias, act }))
    }

    /// A 3x3 convolution at module `path` from `i` to `o` channels.
    pub fn conv(&mut self, path: &str, x: Value, [i, o]: [usize; 2], with: Conv) -> Value {
        let weight = self.weight(format!("{path}.weight"), &[o, i, 3, 3], Storage::Conv);
        let bias = Some(self.vector(format!("{path}.bias"), o));
        let Conv { sampling, shift, residual } = with;
        self.push(path, Op::Conv2d(Conv2d { x, weight, bias, sampling, shift, residual }))
    }

    /// A layer norm of `d` features at module `path`.
    pub fn layer_norm(&mut self, path: &str, x: Value, d: usize, eps: f32) -> Value {
        let weight = Some(self.vector(format!("{path}.weight"), d));
        let bias = Some(self.vector(format!("{path}.bias"), d));
        self.push(path, Op::LayerNorm(LayerNorm { x, weight, bias, eps, modulation: None, quantize: None }))
    }

    /// A layer norm without parameters, modulated.
    pub fn adaptive_layer_norm(&mut self, path: &str, x: Value, eps: f32, modulation: Modulation) -> Value {
        let modulation = Some(modulation);
        self.push(path, Op::LayerNorm(LayerNorm { x, weight: None, bias: None, eps, modulation, quantize: None }))
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

    /// The whole table of `rows` by `d` at module `path`.
    pub fn table(&mut self, path: &str, rows: usize, d: usize) -> Value {
        let tensor = self.weight(format!("{path}.weight"), &[rows, d], Storage::Table);
        self.push(path, Op::Parameter(Parameter { tensor }))
    }

    /// The nearest of `rows` vectors of `d` at module `path`; `table` is the module that holds them.
    pub fn vector_quantize(&mut self, path: &str, table: &str, x: Value, rows: usize, d: usize) -> Value {
        let table = self.weight(format!("{table}.weight"), &[rows, d], Storage::Vector);
        self.push(path, Op::VectorQuantize(VectorQuantize { x, table }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_rows_go_by_turns_and_back() {
        let source = [[1, 2], [3, 4], [5, 6], [10, 20], [30, 40], [50, 60]].concat();
        let arranged = Rows::Interleaved.arrange(&source, 2);
        assert_eq!(arranged[..], [1, 2, 10, 20, 3, 4, 30, 40, 5, 6, 50, 60]);
        assert_eq!(Rows::Interleaved.restore(&arranged, 2)[..], source);
        assert_eq!(Rows::Interleaved.arrange(&[1, 2, 3, 10, 20, 30], 1)[..], [1, 10, 2, 20, 3, 30]);
        assert_eq!(Rows::AsIs.arrange(&source, 2)[..], source);
        assert_eq!(Rows::AsIs.restore(&source, 2)[..], source);
    }
}
