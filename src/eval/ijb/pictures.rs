//! The images of IJB, aligned when they are loaded.

use std::borrow::Cow;

use super::meta::Meta;
use crate::data::Image;
use crate::data::align::landmarks::inside;
use crate::data::align::{decode_whole, fit_or_explain, warp};
use crate::eval::cached::Pictures;
use crate::{Error, Result};

/// Names how these images are prepared, for the cache of embeddings.
pub const PREPARATION: &str = "five points to the input's side by least squares, bilinear, black border";

/// The faces of a set of lists.
pub struct Crops<'a> {
    name: String,
    meta: &'a Meta,
}

impl<'a> Crops<'a> {
    /// The faces of `meta`, called `name`.
    pub fn new(name: &str, meta: &'a Meta) -> Self {
        Self { name: name.to_owned(), meta }
    }

    fn encoded(&self, index: usize) -> Result<Vec<u8>> {
        let name = self.meta.faces.names.get(index).map_or("", String::as_str);
        let path = self.meta.crops.join(inside(name).unwrap_or_default());
        std::fs::read(&path).map_err(|source| Error::io(&path, source))
    }

    fn points(&self, index: usize) -> crate::data::align::Points {
        self.meta.faces.points.get(index).copied().unwrap_or_default()
    }
}

impl Pictures for Crops<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> usize {
        self.meta.faces.names.len()
    }

    fn stored(&self, index: usize) -> Result<Cow<'_, [u8]>> {
        let mut bytes = self.encoded(index)?;
        self.points(index).iter().flatten().for_each(|value| bytes.extend(value.to_le_bytes()));
        Ok(Cow::Owned(bytes))
    }

    fn load(&self, index: usize, size: [usize; 2]) -> Result<Image> {
        let place = || {
            let name = self.meta.faces.names.get(index).map_or("", String::as_str);
            format!("{}, face {} ({name})", self.meta.faces_list.display(), index + 1)
        };
        if size[0] != size[1] {
            return Err(Error::usage(
                format!("the network's input is {} x {} (height x width)", size[0], size[1]),
                "faces are aligned to a square: use a network with a square input",
            ));
        }
        let image = decode_whole(&self.encoded(index)?, place)?;
        let fit = fit_or_explain(&self.points(index), size[0], place)?;
        Ok(warp(&image, &fit.transform, size[0]))
    }
}
