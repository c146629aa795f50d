"""The audit within other people's trainers, against the real packages. They are no requirement: in an environment of their own,
`pip install transformers lightning accelerate` beside this package, then `pytest tests/test_trainers.py`"""
import sys, warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnotes.report import lightning_audit, transformers_audit


def said(work):
    "What is returned, and the warnings of audits on the way"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        out = work()
    return out, [str(w.message) for w in heard if 'not audited' in str(w.message) or 'softmax' in str(w.message) or 'add up' in str(w.message)]

def test_nothing_is_imported_before_it_is_called():
    import subprocess
    code = 'import sys, resnotes.report; assert not {"transformers", "lightning", "pytorch_lightning"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)

# --- transformers ---------------------------------------------------------------------------------------------------------

def trained_bert(folder, *callbacks, model=None, labels=True):
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('accelerate')
    torch.manual_seed(0)
    model = model or transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2))
    data = [dict(input_ids=torch.randint(3, 99, (8,)), **(dict(labels=k%2) if labels else {})) for k in range(12)]
    args = transformers.TrainingArguments(folder, per_device_train_batch_size=4, max_steps=4, learning_rate=1e-3, report_to=[], disable_tqdm=True,
                                          save_strategy='no', logging_strategy='no', use_cpu=True, dataloader_pin_memory=False, seed=3)
    transformers.Trainer(model, args, train_dataset=data, callbacks=list(callbacks)).train()
    return model

def test_transformers_audit_sees_the_first_batch_and_changes_nothing(tmp_path):
    pytest.importorskip('transformers')
    auditor = transformers_audit()
    plain = trained_bert(tmp_path)
    model, warned = said(lambda: trained_bert(tmp_path, auditor))
    assert warned == [] and auditor.report.findings == [] and auditor.report.depth == 4 and auditor.report.value == pytest.approx(.69, abs=.2)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters()))
    assert not model._forward_pre_hooks

def test_transformers_audit_warns_of_a_finding(tmp_path):
    transformers = pytest.importorskip('transformers')
    class Softmaxed(nn.Module):
        "Probabilities before a loss that wants logits"
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(99, 16), nn.Linear(16, 2)
        def forward(self, input_ids, labels):
            out = self.head(self.embed(input_ids).mean(1)).softmax(-1)
            return dict(loss=F.cross_entropy(out, labels), logits=out)
    auditor = transformers_audit()
    _, warned = said(lambda: trained_bert(tmp_path, auditor, model=Softmaxed()))
    assert [f.cause for f in auditor.report.findings] == ['probabilities_as_logits'] and len(warned) == 1

def test_transformers_audit_ends_no_run(tmp_path, monkeypatch):
    pytest.importorskip('transformers')
    def fails(*args, **kwargs): raise RuntimeError('out of memory')
    monkeypatch.setattr('resnotes.report.audit', fails)
    auditor = transformers_audit()
    _, warned = said(lambda: trained_bert(tmp_path, auditor))
    assert warned == ['not audited: out of memory'] and auditor.report is None

# --- lightning ------------------------------------------------------------------------------------------------------------

def module(lightning, last=None, manual=False):
    class Digits(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(.2), nn.Linear(32, 10), *([last] if last else [])), not manual
            self.values = []
        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log('train', loss)
            self.values.append(loss.item())
            if manual:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()
            return loss
        def configure_optimizers(self): return torch.optim.SGD(self.parameters(), .1)
    return Digits()

def fitted(folder, *callbacks, **kwargs):
    lightning = pytest.importorskip('lightning')
    torch.manual_seed(0)
    model, data = module(lightning, **kwargs), [(torch.randn(1, 8, 8), k%10) for k in range(40)]
    trainer = lightning.Trainer(max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                                callbacks=list(callbacks), default_root_dir=folder)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=10, shuffle=True))
    return model, trainer

def test_lightning_audit_sees_the_first_batch_and_changes_nothing(tmp_path):
    pytest.importorskip('lightning')
    plain, _ = fitted(tmp_path)
    auditor = lightning_audit()
    (model, trainer), warned = said(lambda: fitted(tmp_path, auditor))
    assert warned == [] and auditor.report.findings == [] and [r.kind for r in auditor.report.layers] == ['linear', 'linear']
    assert auditor.report.value == pytest.approx(model.values[1]) and model.values[1:] == plain.values          # the audit's own call comes first
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters())) and set(trainer.callback_metrics) == {'train'}
    assert 'log' not in vars(model)

def test_lightning_audit_warns_of_a_finding(tmp_path):
    pytest.importorskip('lightning')
    auditor = lightning_audit()
    _, warned = said(lambda: fitted(tmp_path, auditor, last=nn.Softmax(1)))
    assert [f.cause for f in auditor.report.findings] == ['probabilities_as_logits'] and len(warned) == 1

def test_lightning_audit_leaves_manual_optimization_alone(tmp_path):
    pytest.importorskip('lightning')
    auditor = lightning_audit()
    model, _ = fitted(tmp_path, auditor, manual=True)
    assert auditor.report is None and len(model.values) == 4

def test_lightning_audit_ends_no_run(tmp_path, monkeypatch):
    pytest.importorskip('lightning')
    def fails(*args, **kwargs): raise RuntimeError('out of memory')
    monkeypatch.setattr('resnotes.report.audit', fails)
    auditor = lightning_audit()
    (model, _), warned = said(lambda: fitted(tmp_path, auditor))
    assert warned == ['not audited: out of memory'] and len(model.values) == 4
