//! More or fewer pixels.

use super::numbered::numbered;
use super::op::{Operation, Value};
use super::shape::{Kind, Rule, Type};
use super::visit::Visit;
use crate::error::Result;

numbered! {
    "Resamplings"
    /// How [`Resample`] changes the number of pixels.
    pub enum Resampling: Default {
        /// Twice as many per axis, nearest neighbour.
        Nearest = 0 "nearest",
        /// Half as many per axis, means of 2 x 2; odd ones at the end are dropped.
        Mean = 1 "mean",
    }
}

/// More or fewer pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Resample {
    /// `(n, h, w, c)`.
    pub x: Value,
    /// Which.
    pub how: Resampling,
}

impl Operation for Resample {
    const CODE: u16 = 17;
    const NAME: &'static str = "resample";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.choice("how", &mut self.how);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let (x, [n, h, w, c]) = rule.float_image("x", self.x)?;
        let sizes = match self.how {
            Resampling::Nearest => (h.checked_mul(2), w.checked_mul(2)),
            Resampling::Mean => (Some(h / 2), Some(w / 2)),
        };
        let (Some(h), Some(w)) = sizes else {
            return rule.err("x", "fewer pixels", x.dims());
        };
        Ok(Type::new(&[n, h, w, c], Kind::Float))
    }
}
