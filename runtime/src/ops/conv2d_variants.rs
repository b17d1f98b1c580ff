//! The variants of `conv2d` and its two gradients among which a tuner may choose, by name, and the same convolution on less.

use crate::caps::Caps;
use crate::op::Lowering;
use crate::ops::conv2d::Conv2d;
use crate::ops::convolution::{Geometry, Path, Tile, Variant};
use crate::ops::cooperative::{Jobs, Matrices};
use crate::{DType, TensorDesc};

/// Channels of a group up to which a direct kernel may be worth a try.
const FEW_CHANNELS: usize = 16;

/// How many times as many parts as by rule, as `(numerator, denominator)`.
pub(super) type Parts = (usize, usize);

/// Multiples of the number of parts that the gradient of the weight may be added in.
const PARTS: [(&str, Parts); 4] =
    [("parts x2", (2, 1)), ("parts x4", (4, 1)), ("parts /2", (1, 2)), ("parts /4", (1, 4))];

/// The kernels by their names.
fn named() -> impl Iterator<Item = (String, Variant)> {
    let tiles = Tile::ALL.into_iter().map(|tile| (format!("tiled {tile}"), Variant::Tiled(Some(tile))));
    let others = [
        ("winograd", Variant::Winograd),
        ("subgroup", Variant::Subgroup),
        ("direct", Variant::Direct),
        ("depthwise", Variant::Depthwise),
    ];
    let matrices =
        Jobs::ALL.into_iter().map(|jobs| (format!("cooperative {jobs}"), Variant::Cooperative(Some(jobs))));
    tiles.chain(matrices).chain(others.map(|(name, variant)| (name.to_owned(), variant)))
}

/// What may be chosen for a convolution of `geometry` with operands of `element`; nothing where it was recorded for certain
/// kernels.
pub(super) fn names(variant: Variant, geometry: &Geometry, caps: &Caps, element: DType) -> Vec<String> {
    if variant != Variant::Auto {
        return Vec::new();
    }
    let possible = |(name, variant): (String, Variant)| {
        // A variant that an adapter or a shape does not allow becomes another one.
        let possible = match (variant, geometry.path(variant, caps, element)) {
            (Variant::Subgroup, path) => matches!(path, Path::Subgroup(_)),
            (Variant::Depthwise, path) => path == Path::Depthwise,
            (Variant::Cooperative(_), path) => {
                matches!(path, Path::Cooperative(_)) && Matrices::suit(geometry.group_in, geometry.group_out)
            }
            (Variant::Winograd, path) => path == Path::Winograd,
            (Variant::Direct, _) => geometry.group_in.min(geometry.group_out) <= FEW_CHANNELS,
            (Variant::Tiled(Some(tile)), _) => tile.invocations() <= caps.max_invocations,
            _ => true,
        };
        possible.then_some(name)
    };
    named().filter_map(possible).collect()
}

/// As [`names`], for the gradient of the weight, whose number of parts may be chosen as well.
pub(super) fn names_with_parts(
    variant: Variant,
    geometry: &Geometry,
    caps: &Caps,
    element: DType,
) -> Vec<String> {
    let mut all = names(variant, geometry, caps, element);
    // It makes the other two convolutions alone.
    all.retain(|name| name != "winograd");
    if !all.is_empty() {
        all.extend(PARTS.iter().map(|(name, _)| (*name).to_owned()));
    }
    all
}

/// The variant that was chosen: `variant` where the op was recorded for certain kernels, or nothing was chosen.
pub(super) fn chosen(variant: Variant, lowering: &Lowering<'_>) -> Variant {
    let found = lowering.choice().filter(|_| variant == Variant::Auto);
    found.and_then(|name| named().find(|(known, _)| known == name)).map_or(variant, |(_, variant)| variant)
}

/// The parts that were chosen.
pub(super) fn chosen_parts(variant: Variant, lowering: &Lowering<'_>) -> Parts {
    let found = lowering.choice().filter(|_| variant == Variant::Auto);
    found.and_then(|name| PARTS.iter().find(|(known, _)| *known == name)).map_or((1, 1), |(_, parts)| *parts)
}

/// The same convolution on about half as much: half the images, or else half the rows and columns. Returns x, dy or y, and
/// height and width of x; `None` where it cannot be less. Channels stay, so that the same kernels fit.
pub(super) fn smaller(
    conv: &Conv2d,
    geometry: &Geometry,
    weight: &TensorDesc,
    dtype: DType,
) -> Option<(TensorDesc, TensorDesc, [usize; 2])> {
    let (batch, [height, width]) = (geometry.batch, geometry.in_size);
    let (batch, size) = match batch {
        0 | 1 => (batch, [height.div_ceil(2), width.div_ceil(2)]),
        images => (images.div_ceil(2), [height, width]),
    };
    if (batch, size) == (geometry.batch, geometry.in_size) {
        return None;
    }
    let x = TensorDesc { shape: [batch, size[0], size[1], geometry.in_channels()].into(), dtype };
    let less = Geometry::check("conv2d", conv, &x, weight).ok()?;
    // A window that was the whole image must stay it, or it is another kind of convolution.
    if (geometry.kernel == geometry.in_size) != (less.kernel == less.in_size) {
        return None;
    }
    Some((x, TensorDesc { shape: less.out_shape(), dtype }, size))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::caps::{MatrixSides, SubgroupSizes};
    use crate::op::Op;
    use crate::ops::REGISTRY;

    const GPU: Caps = Caps {
        f16: true,
        subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
        matrices: MatrixSides { f32: Some(8), f16: Some(16) },
        max_invocations: 1024,
        max_workgroup_bytes: 49_152,
        ..Caps::WEBGPU
    };

    #[test]
    fn no_two_variants_of_an_op_have_one_name() {
        let cpu = Caps { cpu: true, subgroups: Some(SubgroupSizes { min: 8, max: 8 }), ..Caps::WEBGPU };
        for entry in REGISTRY {
            for case in (entry.cases)() {
                let inputs: Vec<TensorDesc> = case.inputs.iter().map(|input| input.desc().clone()).collect();
                for caps in [&cpu, &Caps::WEBGPU, &GPU] {
                    let names = case.op.variants(caps, &inputs);
                    let different: BTreeSet<&String> = names.iter().collect();
                    assert_eq!(different.len(), names.len(), "{} of {}: {names:?}", case.label, entry.name);
                }
            }
        }
        let names: BTreeSet<String> = named().map(|(name, _)| name).collect();
        assert_eq!(names.len(), named().count());
    }

    #[test]
    fn every_tile_is_reached_by_its_name_within_the_limits_of_webgpu() {
        // Channels and pixels enough for a block of each tile.
        let inputs = [TensorDesc::f32([4, 28, 28, 128]), TensorDesc::f32([3, 3, 128, 128])];
        let op = Conv2d { padding: [1; 4], ..Conv2d::default() };
        let names = op.variants(&Caps::WEBGPU, &inputs);
        let tiles: Vec<&String> = names.iter().filter(|name| name.starts_with("tiled")).collect();
        assert_eq!(tiles.len(), Tile::ALL.len(), "{names:?}");
        let outputs = op.infer(&inputs).unwrap();
        let launched: BTreeSet<String> = tiles
            .into_iter()
            .map(|name| {
                let run = Lowering::run_choice(&op, &Caps::WEBGPU, &inputs, &outputs, Some(name)).unwrap();
                let [launch] = run.dispatches.as_slice() else { panic!("{name}: {:?}", run.dispatches) };
                format!("{:?}", launch.constants)
            })
            .collect();
        assert_eq!(launched.len(), Tile::ALL.len(), "{launched:?}");
    }

    #[test]
    fn a_tile_counts_the_invocations_that_the_kernel_has() {
        let invocations: Vec<u32> = Tile::ALL.iter().map(Tile::invocations).collect();
        assert_eq!(invocations, [256, 128, 256, 64, 128, 128, 64, 32]);
    }
}
