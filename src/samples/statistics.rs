//! What pictures are like, in sums of whole numbers: they are exact, so no order and no split changes them.

use rayon::prelude::*;

/// Mean and covariance of the bytes of pictures' channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    channels: usize,
    /// Pixels.
    pixels: u64,
    /// Of each channel, of its bytes.
    sums: Vec<u64>,
    /// Of each pair of channels, of the products of their bytes. 2^48 pixels fit.
    products: Vec<u64>,
    /// Images that are of one colour.
    flat: Vec<usize>,
    images: usize,
}

impl Statistics {
    /// Those of no pictures of `channels` channels.
    pub fn new(channels: usize) -> Self {
        let (sums, products) = (vec![0; channels], vec![0; channels * channels]);
        Statistics { channels, pixels: 0, sums, products, flat: Vec::new(), images: 0 }
    }

    /// Adds images of `len` bytes each, channels last; a remainder that is no image is left out.
    pub fn add(&mut self, bytes: &[u8], len: usize) {
        let channels = self.channels;
        let of_image = |image: &[u8]| {
            let (mut sums, mut products) = (vec![0u64; channels], vec![0u64; channels * channels]);
            for pixel in image.chunks_exact(channels) {
                for (a, &x) in pixel.iter().enumerate() {
                    sums[a] += u64::from(x);
                    for (b, &y) in pixel.iter().enumerate() {
                        products[a * channels + b] += u64::from(x) * u64::from(y);
                    }
                }
            }
            let flat = image.chunks_exact(channels).all(|pixel| pixel == &image[..channels]);
            (sums, products, flat)
        };
        let images: Vec<_> = bytes.par_chunks_exact(len).map(of_image).collect();
        for (sums, products, flat) in images {
            self.sums.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
            self.products.iter_mut().zip(products).for_each(|(all, sum)| *all += sum);
            self.flat.extend(flat.then_some(self.images));
            self.pixels += (len / channels) as u64;
            self.images += 1;
        }
    }

    /// The mean of each channel, 0 to 255.
    pub fn mean(&self) -> Vec<f64> {
        self.sums.iter().map(|&sum| sum as f64 / self.pixels as f64).collect()
    }

    /// The covariance of channels `(c, c)`, of the population of all pixels.
    pub fn covariance(&self) -> Vec<f64> {
        let n = u128::from(self.pixels);
        let pairs = (0..self.channels).flat_map(|a| (0..self.channels).map(move |b| (a, b)));
        // Σxy / n - Σx Σy / n^2 = (n Σxy - Σx Σy) / n^2, of which the numerator is exact.
        let covariance = |(a, b): (usize, usize)| {
            let product = n * u128::from(self.products[a * self.channels + b]);
            let of_means = u128::from(self.sums[a]) * u128::from(self.sums[b]);
            let sign = if product < of_means { -1.0 } else { 1.0 };
            sign * product.abs_diff(of_means) as f64 / (n * n) as f64
        };
        pairs.map(covariance).collect()
    }

    /// The numbers of images that are of one colour: what is left of a run that went wrong.
    pub fn flat(&self) -> &[usize] {
        &self.flat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// numpy: `x = np.array([[0, 10], [255, 20], [3, 3], [3, 3]]); x.mean(0), np.cov(x.T, bias=True)`.
    #[test]
    fn they_are_those_of_numpy() {
        let mut statistics = Statistics::new(2);
        statistics.add(&[0, 10, 255, 20, 3, 3, 3, 3], 4);
        assert_eq!(statistics.mean(), [65.25, 9.0]);
        assert_eq!(statistics.covariance(), [12003.1875, 692.25, 692.25, 48.5]);
        assert_eq!(statistics.flat(), [1]);
    }

    #[test]
    fn splits_change_nothing() {
        let bytes: Vec<u8> = (0..7 * 12).map(|i| (i * i % 251) as u8).collect();
        let mut whole = Statistics::new(3);
        whole.add(&bytes, 12);
        for at in [12, 36, 72] {
            let mut parts = Statistics::new(3);
            parts.add(&bytes[..at], 12);
            parts.add(&bytes[at..], 12);
            assert_eq!(parts, whole);
        }
    }
}
