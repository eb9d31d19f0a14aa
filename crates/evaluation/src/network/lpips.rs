//! LPIPS, version 0.1 (Zhang et al. 2018): how far apart two pictures are for a network that was trained on photographs, weighed
//! as people see it. Trunks are AlexNet and VGG-16 as torchvision has them.

use super::conv::{Conv, Grid};
use super::layers::{Layer, Pool, chain};
use super::{Map, Weights};
use aquatint::{Error, Result};

/// What is taken from red, green and blue in -1..1, and what they are divided by.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
/// What keeps quotients from small denominators.
const EPSILON: f64 = 1e-10;

/// A convolution of a trunk: its number in torchvision's list, its outputs, its kernel.
type Stage = (usize, usize, usize);

/// Slices of AlexNet, each of which begins by pooling but for the first.
const ALEX: [&[Stage]; 5] = [&[(0, 64, 11)], &[(3, 192, 5)], &[(6, 384, 3)], &[(8, 256, 3)], &[(10, 256, 3)]];
/// Slices of VGG-16.
const VGG: [&[Stage]; 5] = [
    &[(0, 64, 3), (2, 64, 3)],
    &[(5, 128, 3), (7, 128, 3)],
    &[(10, 256, 3), (12, 256, 3), (14, 256, 3)],
    &[(17, 512, 3), (19, 512, 3), (21, 512, 3)],
    &[(24, 512, 3), (26, 512, 3), (28, 512, 3)],
];

/// The network and the weights of its channels.
pub struct Lpips {
    name: &'static str,
    slices: Vec<Vec<Layer>>,
    /// Of each slice, `(channels)`.
    channels: Vec<Vec<f32>>,
}

/// What the network sees in a picture: of each slice, channels that have the length 1 at every place.
pub struct Seen(Vec<Map>);

impl Lpips {
    /// The network of `trunk`, torchvision's AlexNet or VGG-16 (`features.0.weight`..), and of `lin`, the weights that the package
    /// `lpips` has for it (`lin0.model.1.weight`..). Both may be one file that holds its whole network (`net.slice1.0.weight`..).
    ///
    /// # Errors
    /// [`Error::Request`] that names the first tensor that is missing or has other axes.
    pub fn new(trunk: &dyn Weights, lin: &dyn Weights) -> Result<Self> {
        let place = |slice: usize, number: usize| match trunk.has("net.slice1.0.weight") {
            true => format!("net.slice{}.{number}", slice + 1),
            false => format!("features.{number}"),
        };
        // Only AlexNet has weights there.
        let alex = trunk.has(&format!("{}.weight", place(1, 3)));
        let mut inputs = 3;
        let (mut slices, mut channels) = (Vec::new(), Vec::new());
        for (slice, stages) in if alex { ALEX } else { VGG }.into_iter().enumerate() {
            let mut layers = Vec::new();
            // AlexNet pools before its second and third slice alone, over places that overlap.
            match (slice, alex) {
                (1 | 2, true) => layers.push(Layer::Pool(Pool::Max, Grid::within([3, 3], 2))),
                (1.., false) => layers.push(Layer::Pool(Pool::Max, Grid::within([2, 2], 2))),
                _ => {}
            }
            for &(number, outputs, kernel) in stages {
                let grid = match kernel {
                    11 => Grid { kernel: [11, 11], stride: 4, pad: [2, 2] },
                    _ => Grid::same([kernel, kernel]),
                };
                layers.push(Layer::Conv(Conv::biased(trunk, &place(slice, number), [inputs, outputs], grid)?));
                inputs = outputs;
            }
            slices.push(layers);
            channels.push(lin.shaped(&format!("lin{slice}.model.1.weight"), &[1, inputs, 1, 1])?);
        }
        Ok(Lpips { name: if alex { "alex" } else { "vgg" }, slices, channels })
    }

    /// `alex` or `vgg`: distances of the two do not compare.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Refuses pictures that are too small for the network, or are not of red, green and blue.
    pub(crate) fn check(&self, size: [usize; 2], channels: usize) -> Result<()> {
        if channels != 3 {
            return Err(Error::request("lpips", "pictures of 3 channels", channels));
        }
        let end = self.slices.iter().flatten().fold(size, |size, layer| layer.size(size));
        match end.contains(&0) {
            true => {
                let got = format!("{} x {} pixels", size[1], size[0]);
                Err(Error::request("lpips", format!("pictures that are large enough for {}", self.name), got))
            }
            false => Ok(()),
        }
    }

    /// What the network sees in a picture `(height, width, 3)` in 0..1, of a size that is large enough.
    pub fn see(&self, picture: &[f32], size: [usize; 2]) -> Seen {
        let value = |(at, &v): (usize, &f32)| (2.0 * v - 1.0 - SHIFT[at % 3]) / SCALE[at % 3];
        let mut x = Map { size, channels: 3, values: picture.iter().enumerate().map(value).collect() };
        let slice = |layers: &Vec<Layer>| {
            x = chain(layers, &x);
            let mut seen = x.clone();
            for place in seen.values.chunks_exact_mut(x.channels) {
                let length = place.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt() + EPSILON;
                place.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            }
            seen
        };
        Seen(self.slices.iter().map(slice).collect())
    }

    /// The distance of two pictures of one size: squared differences, weighed channel by channel, the mean over places, and the
    /// sum over slices.
    pub fn distance(&self, a: &Seen, b: &Seen) -> f64 {
        let slice = |((a, b), weights): ((&Map, &Map), &Vec<f32>)| {
            let place = |(a, b): (&[f32], &[f32])| -> f64 {
                let values = a.iter().zip(b).zip(weights);
                values.map(|((&a, &b), &w)| f64::from(w) * (f64::from(a) - f64::from(b)).powi(2)).sum()
            };
            a.places().zip(b.places()).map(place).sum::<f64>() / (a.size[0] * a.size[1]) as f64
        };
        a.0.iter().zip(&b.0).zip(&self.channels).map(slice).sum()
    }
}
