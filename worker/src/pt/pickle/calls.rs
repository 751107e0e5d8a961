//! What torch's pickles name and call, understood without calling anything.

use std::sync::Arc;

use super::machine::{Id, Machine, Node};
use super::{Dtype, MAX_DIMS, PickleError, StorageRef, TensorRef};

/// The functions and classes that torch's files name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    Size,
    Storage(Dtype),
}

impl Global {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Global::RebuildParameter
            }
            ("torch.nn.parameter", "Parameter") => Global::RebuildParameter,
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", "Size") => Global::Size,
            ("torch", class) => Global::Storage(Dtype::of_storage(class)?),
            _ => return None,
        })
    }
}

impl Machine<'_> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = Global::named(module, name);
        let global = global.ok_or_else(|| PickleError::Global { name: format!("{module}.{name}") })?;
        self.push(Node::Global(global));
        Ok(())
    }

    /// `('storage', class, key, location, numel)`, in legacy files with a view of the storage as sixth:
    /// None or `(view key, offset, numel)`.
    pub(super) fn persistent(&mut self, id: Id) -> Result<(), PickleError> {
        const WHAT: &str = "a reference to a storage that is not of torch's form";
        let items = match &self.nodes[id] {
            Node::Tuple(items) if items.len() <= 6 => items,
            _ => return Err(self.malformed(WHAT)),
        };
        let nodes: Vec<&Node> = items.iter().map(|&i| &self.nodes[i]).collect();
        let [Node::Str(tag), Node::Global(Global::Storage(dtype)), Node::Str(key), _, numel, view @ ..] =
            nodes.as_slice()
        else {
            return Err(self.malformed(WHAT));
        };
        let start = match view {
            [] | [Node::None] => Some(0),
            [Node::Tuple(view)] if view.len() == 3 => self.unsigned(view[1]),
            _ => None,
        };
        let numel = unsigned(numel);
        let (Some(start), Some(numel), "storage") = (start, numel, &**tag) else {
            return Err(self.malformed(WHAT));
        };
        let storage = Arc::new(StorageRef { key: key.clone(), dtype: *dtype, numel, start });
        self.storages.push(storage.clone());
        self.push(Node::Storage(storage));
        Ok(())
    }

    fn unsigned(&self, id: Id) -> Option<u64> {
        unsigned(&self.nodes[id])
    }

    /// A tuple of sizes or strides.
    fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        match &self.nodes[id] {
            Node::Tuple(items) if items.len() <= MAX_DIMS => {
                items.iter().map(|&i| self.unsigned(i)).collect()
            }
            _ => None,
        }
    }

    /// Where another reader would call a function: the few known ones are understood, none is called.
    pub(super) fn reduce(&mut self, function: Id, args: Id) -> Result<(), PickleError> {
        let (&Node::Global(function), Node::Tuple(args)) = (&self.nodes[function], &self.nodes[args]) else {
            return Err(self.malformed("it calls something that is no function"));
        };
        match (function, args.as_slice()) {
            (Global::OrderedDict, []) => self.push(Node::Dict(Vec::new())),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                // The same tuple can be the shape of any number of tensors, each of which has a copy.
                if let Node::Tuple(sides) = &self.nodes[shape] {
                    self.spend(sides.len())?;
                }
                let tensor = self.tensor(storage, offset, shape, strides);
                let tensor = tensor.ok_or_else(|| self.malformed("a tensor's arguments are not torch's"))?;
                self.push(tensor);
            }
            // A Size is its tuple and a Parameter its tensor: the same node, so that nothing is copied.
            (Global::Size, &[tuple]) if matches!(self.nodes[tuple], Node::Tuple(_)) => self.stack.push(tuple),
            (Global::RebuildParameter, &[tensor, ..]) if matches!(self.nodes[tensor], Node::Tensor(_)) => {
                self.stack.push(tensor);
            }
            _ => return Err(self.malformed("a call whose arguments are not torch's")),
        }
        Ok(())
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Option<Node> {
        let Node::Storage(storage) = &self.nodes[storage] else { return None };
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        let offset = self.unsigned(offset)?;
        (shape.len() == strides.len())
            .then(|| Node::Tensor(Arc::new(TensorRef { storage: storage.clone(), offset, shape, strides })))
    }
}

fn unsigned(node: &Node) -> Option<u64> {
    match node {
        Node::Int(v) => u64::try_from(*v).ok(),
        _ => None,
    }
}
