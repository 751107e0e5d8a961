"""Writes the test data of worker/src/labels with torch.save and torchvision: make.py FOLDER."""
import sys, json, os, pickle, torch, torchvision
out = sys.argv[1]; os.makedirs(out, exist_ok=True)
torch.manual_seed(0)
K, H, W, C = 5, 15, 15, 1000
def make(k, h, w, c, dt):
    logits = torch.randn(k, h, w) * 4 + 4
    ids = torch.rand(h, w, c).argsort(-1)[..., :k].permute(2, 0, 1).float()
    return torch.stack([logits, ids]).to(dt)
small = make(3, 4, 5, 50, torch.float32)
torch.save(small, f"{out}/zip_f32.pt")
torch.save(small.half(), f"{out}/zip_f16.pt")
torch.save(small, f"{out}/legacy_f32.pt", _use_new_zipfile_serialization=False)
torch.save(small.half(), f"{out}/legacy_f16.pt", _use_new_zipfile_serialization=False)
torch.save(small.double(), f"{out}/zip_f64.pt")
torch.save(small.bfloat16(), f"{out}/legacy_bf16.pt", _use_new_zipfile_serialization=False)
# non-contiguous and offset: a slice of a transposed, larger tensor
big = torch.zeros(7, 5, 4, 3); big[2:4] = small.permute(0, 3, 2, 1)
view = big[2:4].permute(0, 3, 2, 1)
assert not view.is_contiguous() and torch.equal(view, small)
torch.save(view, f"{out}/zip_view.pt")
torch.save(view, f"{out}/legacy_view.pt", _use_new_zipfile_serialization=False)
torch.save(small, f"{out}/zip_proto4.pt", pickle_protocol=4)
json.dump({"shape": list(small.shape), "values": small.flatten().tolist(), "half": small.half().float().flatten().tolist(), "bf16": small.bfloat16().float().flatten().tolist()}, open(f"{out}/small.json", "w"))
m = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
torch.manual_seed(1)
sd = m.state_dict()
ck = {"epoch": 3, "arch": "resnet18", "accuracy": 0.5, "state_dict": sd, "tied": torch.nn.Parameter(torch.arange(4.).view(2, 2)), "size": torch.Size([2, 3]), "flags": [True, None, -7, 2**40], "opt": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}}
torch.save(ck, f"{out}/checkpoint.pth")
torch.save(ck, f"{out}/checkpoint_legacy.pth", _use_new_zipfile_serialization=False)
class Evil:
    def __reduce__(self): return (os.system, ("exit 1",))
torch.save(Evil(), f"{out}/evil_zip.pt")
torch.save(Evil(), f"{out}/evil_legacy.pt", _use_new_zipfile_serialization=False)
# torchvision's numbers
m = make(5, 15, 15, 40, torch.float32)
torch.save(m, f"{out}/pool.pt")
boxes = [[0,0,1,1],[0.1,0.2,0.6,0.9],[0.5,0.5,0.503,0.502],[0.0,0.3,1.0,0.35],[0.3,0.0,0.35,1.0],[0.97,0.96,1.0,1.0],[0.0,0.0,0.02,0.03],[1/3,1/3,2/3,2/3],[0.2,0.2,0.4,0.7333333]]
dense = torch.zeros(1, 40, 15, 15).scatter_(1, m[1].long()[None], m[0][None])
cases = []
for b in boxes:
    for axes in ("hw", "reference"):
        x1, y1, x2, y2 = b
        c = torch.tensor([[x1, y1, x2, y2] if axes == "hw" else [y1, x1, y2, x2]], dtype=torch.float32) * 15 - 0.5
        o = torchvision.ops.roi_align(dense, torch.cat([torch.zeros(1, 1), c], 1), output_size=(1, 1)).flatten()
        cases.append({"box": b, "axes": axes, "logits": o.tolist(), "target": o.softmax(0).tolist()})
json.dump(cases, open(f"{out}/pool.json", "w"))
