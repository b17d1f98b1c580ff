use super::*;
use crate::nn::Network;
use std::cell::Cell;
use std::sync::{Arc, Mutex};

fn adapter(driver: &str) -> AdapterDescription {
    AdapterDescription {
        index: 0,
        name: "A".into(),
        backend: "Vulkan".into(),
        kind: "Cpu".into(),
        driver: driver.into(),
        caps: epl_runtime::Caps::WEBGPU,
        timestamps: false,
        shader_f16: false,
        cooperative_matrix: Vec::new(),
    }
}

fn spec(arch: &str) -> ModelSpec {
    ModelSpec::new(arch, Network::named(arch).unwrap(), None).unwrap()
}

impl Cache {
    /// What is kept, or what `compute` gives, which is then kept.
    fn embeddings(
        &self,
        name: &str,
        key: &Key,
        shape: [usize; 2],
        compute: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let entry = Entry { name, key, shape };
        if let Some(embeddings) = self.find(&entry) {
            return Ok(embeddings);
        }
        let embeddings = compute()?;
        self.keep(&entry, &embeddings);
        Ok(embeddings)
    }
}

fn images() -> Vec<Vec<u8>> {
    (0..200u32).map(|i| i.to_le_bytes().repeat(1 + i as usize % 7)).collect()
}

fn key_of(recipe: &Recipe, images: &[Vec<u8>]) -> Key {
    Key::new(recipe, images.len(), &|index| Ok(Cow::Borrowed(&images[index]))).unwrap()
}

#[test]
fn whatever_the_numbers_depend_on_is_in_the_key() {
    let base = spec("ir18");
    let recipe = |weights: &str, spec: &ModelSpec, driver: &str, batch, preparation: &str, flip| {
        Recipe::new(weights, spec, &adapter(driver), batch, preparation, flip)
    };
    let mut smaller = base.clone();
    smaller.network.input = [56, 56];
    let mut keys = vec![key_of(&recipe("w", &base, "1", 64, "crop", true), &images())];
    assert_eq!(keys[0], key_of(&recipe("w", &base, "1", 64, "crop", true), &images()), "the same, the same");
    for other in [
        recipe("v", &base, "1", 64, "crop", true),
        recipe("w", &spec("ir34"), "1", 64, "crop", true),
        recipe("w", &smaller, "1", 64, "crop", true),
        recipe("w", &base, "2", 64, "crop", true),
        recipe("w", &base, "1", 32, "crop", true),
        recipe("w", &base, "1", 64, "align", true),
        recipe("w", &base, "1", 64, "crop", false),
    ] {
        keys.push(key_of(&other, &images()));
    }
    let recipe = recipe("w", &base, "1", 64, "crop", true);
    for change in [
        |images: &mut Vec<Vec<u8>>| images[150][0] ^= 1,
        |images: &mut Vec<Vec<u8>>| images.swap(3, 180),
        |images: &mut Vec<Vec<u8>>| drop(images.pop()),
        // A byte that moves from one image to the next.
        |images: &mut Vec<Vec<u8>>| {
            let byte = images[6].pop().unwrap();
            images[7].insert(0, byte);
        },
    ] {
        let mut changed = images();
        change(&mut changed);
        keys.push(key_of(&recipe, &changed));
    }
    let count = keys.len();
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    keys.dedup();
    assert_eq!(keys.len(), count);
}

#[test]
fn an_image_that_cannot_be_read_is_an_error_and_the_first_one_is_named() {
    let recipe = Recipe::new("w", &spec("ir18"), &adapter("1"), 64, "crop", true);
    let error = Key::new(&recipe, 300, &|index| match index {
        130 | 90 | 299 => Err(Error::data(format!("image {index}"), "a", "b", "c")),
        _ => Ok(Cow::Borrowed(&[])),
    });
    assert!(error.unwrap_err().to_string().contains("image 90"));
}

/// A cache with what it said.
fn heard(folder: &Path, limit: u64) -> (Cache, Arc<Mutex<Vec<String>>>) {
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let ear = Arc::clone(&said);
    let cache =
        Cache::new(Some(folder.to_path_buf()), limit, move |line| ear.lock().unwrap().push(line.to_owned()));
    (cache, said)
}

fn key(digit: char) -> Key {
    Key(digit.to_string().repeat(64))
}

const ODD: [f32; 6] = [0.1, -0.0, f32::MIN_POSITIVE / 4.0, f32::MAX, -1.5, f32::MIN];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn what_is_found_has_the_same_bits_and_is_not_computed_again() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, said) = heard(&folder.path().join("new/er"), DEFAULT_LIMIT);
    let computed = Cell::new(0);
    let get = |digit| {
        let compute = || {
            computed.set(computed.get() + 1);
            Ok(ODD.to_vec())
        };
        cache.embeddings("lfw", &key(digit), [2, 3], compute).unwrap()
    };
    assert_eq!((bits(&get('a')), computed.get()), (bits(&ODD), 1));
    assert!(said.lock().unwrap().is_empty());
    assert_eq!((bits(&get('a')), computed.get()), (bits(&ODD), 1));
    assert!(said.lock().unwrap()[0].contains("lfw: the embeddings of 2 images are from"));
    get('b');
    assert_eq!(computed.get(), 2, "another key");
    let infinite = || Ok(vec![f32::INFINITY; 6]);
    cache.embeddings("lfw", &key('c'), [2, 3], infinite).unwrap();
    let entry = Entry { name: "lfw", key: &key('c'), shape: [2, 3] };
    assert_eq!(cache.find(&entry), None, "what is not finite is not kept");
    // What is asked for in another shape is not taken.
    let reshaped = cache.embeddings("lfw", &key('a'), [3, 2], || Ok(vec![1.0; 6])).unwrap();
    assert_eq!(reshaped, [1.0; 6]);
    let none = Cache::none();
    assert!(!none.is_on());
    assert_eq!(none.embeddings("x", &key('a'), [1, 1], || Ok(vec![2.0])).unwrap(), [2.0]);
}

#[test]
fn an_error_of_the_computation_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, _) = heard(folder.path(), DEFAULT_LIMIT);
    let failed = cache.embeddings("x", &key('a'), [1, 1], || Err(Error::data("p", "f", "e", "h")));
    assert!(failed.is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_damaged_file_is_replaced_with_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, said) = heard(folder.path(), DEFAULT_LIMIT);
    let get = || cache.embeddings("lfw", &key('a'), [2, 3], || Ok(ODD.to_vec())).unwrap();
    get();
    let path = folder.path().join(key('a').0).with_extension("safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&b""[..], b"rubbish", &whole[..whole.len() - 1], &flipped] {
        std::fs::write(&path, damaged).unwrap();
        said.lock().unwrap().clear();
        assert_eq!(bits(&get()), bits(&ODD));
        assert!(said.lock().unwrap()[0].contains("lfw: embedding again"), "{said:?}");
        assert!(std::fs::read(&path).unwrap() == whole);
    }
}

#[test]
fn what_was_not_used_for_the_longest_time_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, _) = heard(folder.path(), 5000);
    let get = |digit| cache.embeddings("x", &key(digit), [4, 100], || Ok(vec![1.0; 400])).unwrap();
    let path = |digit| folder.path().join(key(digit).0).with_extension("safetensors");
    let age = |digit, seconds| {
        let file = std::fs::File::options().write(true).open(path(digit)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    let unfinished = folder.path().join(format!("{}.77.partial", key('f').0));
    let foreign = folder.path().join("model.safetensors");
    std::fs::write(&foreign, [0; 9000]).unwrap();
    std::fs::write(&unfinished, "x").unwrap();
    get('a');
    get('b');
    age('a', 100);
    age('b', 200);
    let file = std::fs::File::options().write(true).open(&unfinished).unwrap();
    file.set_modified(SystemTime::now() - 2 * STALE).unwrap();
    // Each is about 1.8 kB: two fit. 'b' is the oldest, but used again.
    get('b');
    get('c');
    assert!(!path('a').exists() && path('b').exists() && path('c').exists());
    assert!(foreign.exists() && !unfinished.exists());
    // What does not fit at all is not kept, and nothing is removed for it.
    cache.embeddings("x", &key('d'), [4, 1000], || Ok(vec![1.0; 4000])).unwrap();
    assert!(!path('d').exists() && path('b').exists() && path('c').exists());
}

#[test]
fn a_folder_that_cannot_be_written_only_warns() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "notes").unwrap();
    let (cache, said) = heard(&file.join("cache"), DEFAULT_LIMIT);
    assert_eq!(cache.embeddings("lfw", &key('a'), [1, 1], || Ok(vec![3.0])).unwrap(), [3.0]);
    assert!(said.lock().unwrap()[0].contains("lfw: the embeddings are not kept"), "{said:?}");
    assert_eq!(std::fs::read(&file).unwrap(), b"notes");
}
