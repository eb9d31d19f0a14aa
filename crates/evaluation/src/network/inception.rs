//! Inception v3 as the TensorFlow graph `inception-2015-12-05` has it (Szegedy et al. 2015), whose features the Fréchet and
//! kernel distances are published with. torchvision's differs in averages at borders, in the last pooling, and in weights.

use super::conv::{Conv, Grid};
use super::layers::{Layer, Pool, chain};
use super::{Map, Weights, bytes, resize};
use aquatint::Result;
use ndarray::{ArrayView1, ArrayView2};

/// Rows and columns that it looks at.
const SIDE: usize = 299;
/// Features, and classes.
const FEATURES: usize = 2048;
const CLASSES: usize = 1008;

/// How pictures are brought to the network's size: distances of features that were made in different ways do not compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// As TensorFlow 1 does, and with it the scripts of the first papers and torch-fidelity: bilinear, without a filter.
    #[default]
    Tensorflow,
    /// As clean-fid does: bicubic, with a filter as wide as pixels become.
    Clean,
}

/// The network.
pub struct Inception {
    layers: Vec<Layer>,
    /// `(classes, features)`.
    classes: Vec<f32>,
    resize: Resize,
}

impl Inception {
    /// The network of the weights in `pt_inception-2015-12-05-6726825d.pth`, or by the same names.
    ///
    /// # Errors
    /// [`aquatint::Error::Request`] that names the first tensor that is missing or has other axes.
    pub fn new(weights: &dyn Weights, resize: Resize) -> Result<Self> {
        let stem = |name: &str, channels, grid| Ok(Layer::Conv(Conv::normalised(weights, name, channels, grid)?));
        let halve = || Layer::Pool(Pool::Max, Grid::within([3, 3], 2));
        let block = |name: &'static str| Block { weights, name };
        let layers = vec![
            stem("Conv2d_1a_3x3", [3, 32], Grid::within([3, 3], 2))?,
            stem("Conv2d_2a_3x3", [32, 32], Grid::within([3, 3], 1))?,
            stem("Conv2d_2b_3x3", [32, 64], Grid::same([3, 3]))?,
            halve(),
            stem("Conv2d_3b_1x1", [64, 80], Grid::same([1, 1]))?,
            stem("Conv2d_4a_3x3", [80, 192], Grid::within([3, 3], 1))?,
            halve(),
            block("Mixed_5b").a(192, 32)?,
            block("Mixed_5c").a(256, 64)?,
            block("Mixed_5d").a(288, 64)?,
            block("Mixed_6a").b(288)?,
            block("Mixed_6b").c(768, 128)?,
            block("Mixed_6c").c(768, 160)?,
            block("Mixed_6d").c(768, 160)?,
            block("Mixed_6e").c(768, 192)?,
            block("Mixed_7a").d(768)?,
            block("Mixed_7b").e(1280, Pool::Mean)?,
            block("Mixed_7c").e(2048, Pool::Max)?,
        ];
        let classes = weights.shaped("fc.weight", &[CLASSES, FEATURES])?;
        Ok(Inception { layers, classes, resize })
    }

    /// Numbers of the layer before the last.
    pub fn features(&self) -> usize {
        FEATURES
    }

    /// Classes.
    pub fn classes(&self) -> usize {
        CLASSES
    }

    /// How pictures are resized, in words.
    pub(crate) fn resize(&self) -> &'static str {
        match self.resize {
            Resize::Tensorflow => "pictures resized as by TensorFlow",
            Resize::Clean => "pictures resized as by clean-fid",
        }
    }

    /// Features, and outputs without the last layer's bias, of a picture `(height, width, 3)` in 0..1, which is rounded to bytes
    /// first: files hold no more.
    pub fn read(&self, picture: &[f32], size: [usize; 2]) -> (Vec<f32>, Vec<f32>) {
        let picture = Map { size, channels: 3, values: bytes(picture) };
        let mut resized = match self.resize {
            Resize::Tensorflow => resize::bilinear(&picture, [SIDE; 2]),
            Resize::Clean => resize::bicubic(&picture, [SIDE; 2]),
        };
        resized.values.iter_mut().for_each(|v| *v = (*v - 128.0) / 128.0);
        let features = chain(&self.layers, &resized).mean();
        let classes = ArrayView2::from_shape((CLASSES, FEATURES), &self.classes).expect("checked above");
        let logits = classes.dot(&ArrayView1::from(&features)).into_raw_vec_and_offset().0;
        (features, logits)
    }
}

/// A convolution of a block: its name, its outputs, its kernel.
type Stage = (&'static str, usize, [usize; 2]);

/// A block of branches, by the names that its tensors have.
struct Block<'w> {
    weights: &'w dyn Weights,
    name: &'static str,
}

impl Block<'_> {
    fn conv(&self, name: &str, channels: [usize; 2], grid: Grid) -> Result<Layer> {
        Ok(Layer::Conv(Conv::normalised(self.weights, &format!("{}.{name}", self.name), channels, grid)?))
    }

    /// Convolutions one after the other, none of which changes the size.
    fn chain(&self, mut inputs: usize, stages: &[Stage]) -> Result<Vec<Layer>> {
        let mut layers = Vec::with_capacity(stages.len());
        for &(name, outputs, kernel) in stages {
            layers.push(self.conv(name, [inputs, outputs], Grid::same(kernel))?);
            inputs = outputs;
        }
        Ok(layers)
    }

    /// The same with a convolution of stride 2 at the end.
    fn halving(&self, inputs: usize, stages: &[Stage], (name, outputs): (&str, usize)) -> Result<Vec<Layer>> {
        let mut layers = self.chain(inputs, stages)?;
        let inputs = stages.last().map_or(inputs, |stage| stage.1);
        layers.push(self.conv(name, [inputs, outputs], Grid::within([3, 3], 2))?);
        Ok(layers)
    }

    /// Pooling over 3 x 3 places and a convolution of one.
    fn pooled(&self, inputs: usize, outputs: usize, pool: Pool) -> Result<Vec<Layer>> {
        let mut layers = vec![Layer::Pool(pool, Grid::same([3, 3]))];
        layers.extend(self.chain(inputs, &[("branch_pool", outputs, [1, 1])])?);
        Ok(layers)
    }

    /// Convolutions, and at the end two side by side: along a line, and along a column.
    fn split(&self, inputs: usize, stages: &[Stage], [line, column]: [&'static str; 2]) -> Result<Vec<Layer>> {
        let mut layers = self.chain(inputs, stages)?;
        let along = self.chain(384, &[(line, 384, [1, 3])])?;
        layers.push(Layer::Branches(vec![along, self.chain(384, &[(column, 384, [3, 1])])?]));
        Ok(layers)
    }

    fn a(&self, inputs: usize, pooled: usize) -> Result<Layer> {
        Ok(Layer::Branches(vec![
            self.chain(inputs, &[("branch1x1", 64, [1, 1])])?,
            self.chain(inputs, &[("branch5x5_1", 48, [1, 1]), ("branch5x5_2", 64, [5, 5])])?,
            self.chain(
                inputs,
                &[("branch3x3dbl_1", 64, [1, 1]), ("branch3x3dbl_2", 96, [3, 3]), ("branch3x3dbl_3", 96, [3, 3])],
            )?,
            self.pooled(inputs, pooled, Pool::Mean)?,
        ]))
    }

    fn b(&self, inputs: usize) -> Result<Layer> {
        let stages = [("branch3x3dbl_1", 64, [1, 1]), ("branch3x3dbl_2", 96, [3, 3])];
        Ok(Layer::Branches(vec![
            self.halving(inputs, &[], ("branch3x3", 384))?,
            self.halving(inputs, &stages, ("branch3x3dbl_3", 96))?,
            vec![Layer::Pool(Pool::Max, Grid::within([3, 3], 2))],
        ]))
    }

    fn c(&self, inputs: usize, inner: usize) -> Result<Layer> {
        let once = [("branch7x7_1", inner, [1, 1]), ("branch7x7_2", inner, [1, 7]), ("branch7x7_3", 192, [7, 1])];
        let twice = [
            ("branch7x7dbl_1", inner, [1, 1]),
            ("branch7x7dbl_2", inner, [7, 1]),
            ("branch7x7dbl_3", inner, [1, 7]),
            ("branch7x7dbl_4", inner, [7, 1]),
            ("branch7x7dbl_5", 192, [1, 7]),
        ];
        Ok(Layer::Branches(vec![
            self.chain(inputs, &[("branch1x1", 192, [1, 1])])?,
            self.chain(inputs, &once)?,
            self.chain(inputs, &twice)?,
            self.pooled(inputs, 192, Pool::Mean)?,
        ]))
    }

    fn d(&self, inputs: usize) -> Result<Layer> {
        let stages = [("branch7x7x3_1", 192, [1, 1]), ("branch7x7x3_2", 192, [1, 7]), ("branch7x7x3_3", 192, [7, 1])];
        Ok(Layer::Branches(vec![
            self.halving(inputs, &[("branch3x3_1", 192, [1, 1])], ("branch3x3_2", 320))?,
            self.halving(inputs, &stages, ("branch7x7x3_4", 192))?,
            vec![Layer::Pool(Pool::Max, Grid::within([3, 3], 2))],
        ]))
    }

    fn e(&self, inputs: usize, pool: Pool) -> Result<Layer> {
        let stages = [("branch3x3dbl_1", 448, [1, 1]), ("branch3x3dbl_2", 384, [3, 3])];
        Ok(Layer::Branches(vec![
            self.chain(inputs, &[("branch1x1", 320, [1, 1])])?,
            self.split(inputs, &[("branch3x3_1", 384, [1, 1])], ["branch3x3_2a", "branch3x3_2b"])?,
            self.split(inputs, &stages, ["branch3x3dbl_3a", "branch3x3dbl_3b"])?,
            self.pooled(inputs, 192, pool)?,
        ]))
    }
}
