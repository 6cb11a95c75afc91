//! Whatever is written reads back equal, and no damage to a file makes the reader panic.

use kizami_gguf::{File, Layout, TypeId, Value, Writer, parse};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

type Tensors = Vec<(String, TypeId, Vec<u64>)>;

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u32>().prop_map(|bits| Value::from(f32::from_bits(bits))),
        any::<bool>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        vec(any::<u8>(), 0..9).prop_map(Value::from),
        vec(any::<i32>(), 0..9).prop_map(Value::from),
        vec(any::<f32>(), 0..9).prop_map(Value::from),
        vec(any::<bool>(), 0..9).prop_map(Value::from),
        vec(".{0,6}", 0..9).prop_map(Value::from),
        vec(any::<u64>(), 0..9).prop_map(Value::from),
    ]
}

fn metadata() -> impl Strategy<Value = Vec<(String, Value)>> {
    let alignment = proptest::option::of((0u32..8).prop_map(|shift| Value::from(1u32 << shift)));
    (btree_map("[a-z.]{1,20}", value(), 0..8), alignment).prop_map(|(values, alignment)| {
        let alignment = alignment.map(|value| ("general.alignment".to_owned(), value));
        values.into_iter().chain(alignment).collect()
    })
}

fn tensors() -> impl Strategy<Value = Tensors> {
    let shape = (0..TypeId::ALL.len(), 1u64..4, vec(1u64..4, 0..4));
    btree_map("[a-z0-9._]{1,63}", shape, 0..6).prop_map(|tensors| {
        let tensor = |(name, (ty, blocks, rows)): (String, (usize, u64, Vec<u64>))| {
            let ty = TypeId::ALL[ty];
            let dims = std::iter::once(blocks * ty.block()).chain(rows).collect();
            (name, ty, dims)
        };
        tensors.into_iter().map(tensor).collect()
    })
}

/// Bytes that differ from tensor to tensor.
fn content(index: usize, len: u64) -> Vec<u8> {
    (0..len).map(|i| (i as usize * 31 + index * 7 + 1) as u8).collect()
}

/// A small header with every kind of record.
fn sample() -> Vec<u8> {
    let metadata = [
        ("general.architecture", Value::from("deepseek2")),
        ("general.alignment", Value::from(64u32)),
        ("deepseek2.block_count", Value::from(3u32)),
        ("deepseek2.scale", Value::from(2.5f32)),
        ("flag", Value::from(true)),
        ("tokens", Value::from(vec!["a".to_owned(), "bc".to_owned(), "\u{2581}d".to_owned()])),
        ("scores", Value::from(vec![0.5f32, 1.5, 2.5])),
        ("flags", Value::from(vec![true, false])),
    ];
    let metadata: Vec<_> = metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let tensors = [
        ("token_embd.weight".to_owned(), TypeId::Q4_K, vec![256, 3]),
        ("blk.0.ffn_up_exps.weight".to_owned(), TypeId::IQ2_XXS, vec![256, 2, 2]),
        ("output_norm.weight".to_owned(), TypeId::F32, vec![5]),
    ];
    let layout = Layout::new(&metadata, &tensors).unwrap();
    let mut bytes = layout.bytes().to_vec();
    bytes.resize(layout.size() as usize, 0);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_reads_back(metadata in metadata(), tensors in tensors(), cut in 0.0f64..1.0) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.gguf");
        let writer = Writer::create(&path, metadata.clone(), &tensors).unwrap();
        let layout = writer.layout().clone();
        // Backwards, and every other tensor in two parts with the second first.
        for (i, info) in layout.tensors().iter().enumerate().rev() {
            let bytes = content(i, info.nbytes);
            if i % 2 == 0 {
                writer.write(&info.name, &bytes).unwrap();
            } else {
                let middle = (cut * bytes.len() as f64) as usize;
                writer.write_rows(&info.name, middle as u64, &bytes[middle..]).unwrap();
                writer.write_rows(&info.name, 0, &bytes[..middle]).unwrap();
            }
        }
        writer.finish().unwrap();

        let file = File::open(&path).unwrap();
        prop_assert_eq!(file.size(), layout.size());
        prop_assert_eq!(file.header(), layout.header());
        prop_assert_eq!(file.header().metadata(), &metadata[..]);
        let read: Tensors =
            file.header().tensors().iter().map(|t| (t.name.clone(), t.ty, t.dims.clone())).collect();
        prop_assert_eq!(&read, &tensors);
        for (i, info) in layout.tensors().iter().enumerate() {
            let (found, bytes) = file.tensor(&info.name).unwrap();
            prop_assert_eq!(found, info);
            prop_assert_eq!(bytes, &content(i, info.nbytes)[..]);
            prop_assert_eq!(&file.view(&info.name).unwrap()[..], bytes);
        }
        // Pages that were let go are read again.
        let views: Vec<_> = layout.tensors().iter().map(|info| file.view(&info.name).unwrap()).collect();
        file.release();
        for (i, (view, info)) in views.iter().zip(layout.tensors()).enumerate() {
            prop_assert_eq!(&view[..], &content(i, info.nbytes)[..]);
        }
        // Layout equality: the header of what was read lays out to the same bytes.
        let again = Layout::new(file.header().metadata(), &tensors).unwrap();
        prop_assert_eq!(again.bytes(), layout.bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_never_panics(
        changes in vec((0usize..1200, prop_oneof![Just(0u8), Just(1), Just(127), Just(128), Just(255), any::<u8>()]), 0..6),
        keep in proptest::option::of(0usize..1200),
    ) {
        let mut bytes = sample();
        for (at, value) in changes {
            let len = bytes.len();
            bytes[at % len] = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep);
        }
        if let Ok(header) = parse(&bytes) {
            for info in header.tensors() {
                prop_assert!(info.offset + info.nbytes <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn noise_after_a_good_start_never_panics(
        tensors in 0i64..4, records in 0i64..4, noise in vec(prop_oneof![Just(0u8), 0u8..13, any::<u8>()], 0..200),
    ) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(records.to_le_bytes());
        bytes.extend(noise);
        let _ = parse(&bytes);
    }
}

#[test]
fn every_cut_of_a_file_is_an_error() {
    let bytes = sample();
    let end = parse(&bytes).map(|h| h.tensors().iter().map(|t| t.offset + t.nbytes).max()).unwrap().unwrap();
    for len in 0..end {
        assert!(parse(&bytes[..len as usize]).is_err(), "{len} of {end} bytes");
    }
    // The padding after the last tensor may be missing, as in files of other writers.
    assert!(parse(&bytes[..end as usize]).is_ok());
}
