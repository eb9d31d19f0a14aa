//! The optimiser.

use rayon::prelude::*;

/// Elements that are worked on together.
const PIECE: usize = 1 << 12;
/// Decay of both means, and what keeps the quotient finite.
const DECAYS: [f64; 2] = [0.9, 0.999];
const EPSILON: f32 = 1e-8;

/// Adam (Kingma & Ba 2015, algorithm 1) for one array of parameters.
#[derive(Clone, Debug)]
pub struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

impl Adam {
    /// For `len` parameters.
    pub fn new(len: usize) -> Self {
        Adam { mean: vec![0.0; len], square: vec![0.0; len], steps: 0 }
    }

    /// Moves `parameters` against `gradient` at this rate.
    ///
    /// # Panics
    /// If their number is another one.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], rate: f32) {
        assert_eq!([parameters.len(), gradient.len()], [self.mean.len(); 2], "parameters and their derivatives");
        self.steps += 1;
        let [fresh, fresh_square] = DECAYS.map(|decay| (1.0 - decay) as f32);
        let old_square = DECAYS[1] as f32;
        // As torch has it: corrections in f64, elements in f32.
        let correction = DECAYS.map(|decay| 1.0 - decay.powi(self.steps));
        let (size, root) = ((f64::from(rate) / correction[0]) as f32, correction[1].sqrt() as f32);
        let pieces = (
            parameters.par_chunks_mut(PIECE),
            gradient.par_chunks(PIECE),
            self.mean.par_chunks_mut(PIECE),
            self.square.par_chunks_mut(PIECE),
        );
        pieces.into_par_iter().for_each(|(parameters, gradient, means, squares)| {
            for (((p, &g), mean), square) in parameters.iter_mut().zip(gradient).zip(means).zip(squares) {
                *mean += (g - *mean) * fresh;
                *square = *square * old_square + g * g * fresh_square;
                *p -= size * *mean / (square.sqrt() / root + EPSILON);
            }
        });
    }
}
