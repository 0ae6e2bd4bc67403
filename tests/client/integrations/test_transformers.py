"""FLeRM in Hugging Face's Trainer measures and applies what a plain loop does, without a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from framework_models import Stream, batches, examples, gpt2, losses, same_weights, trainer_of
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import TrainerCallback

from flerm_client import FLeRM, RegistryClient
from flerm_client.integrations.transformers import FLeRMCallback
from flerm_core.errors import InvalidInput
from flerm_core.trajectory import Trajectory


def targets(scale: float = 0.5) -> dict[str, float]:
    """For every tensor of the model, what a plain run of it measures first, scaled."""
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    with FLeRM.record(
        model, optimizer, probe=batches(), family="gpt2", output=lambda m, b: m(**b).logits
    ) as flerm:
        model(**collated(0)).loss.backward()
        optimizer.step()
    return {name: value * scale for name, value in flerm.fslr.items()}


def collated(at: int, size: int = 8) -> dict[str, torch.Tensor]:
    rows = [examples()[index % 64] for index in range(at * size, (at + 1) * size)]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


class TestRecording:
    def test_leaves_losses_and_weights_as_they_are_without_it(self, tmp_path: Path) -> None:
        plain = trainer_of(tmp_path)
        plain.train()
        trainer = trainer_of(tmp_path)
        callback = FLeRMCallback("record", family="gpt2", every=2, warmup=2).add_to(trainer)
        trainer.train()
        assert losses(trainer) == losses(plain)
        assert same_weights(trainer.model, plain.model)
        assert callback.flerm.trajectory.steps.tolist() == [1, 3, 5]

    def test_knows_the_losses_the_rates_and_the_tokens_of_its_steps(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path)
        callback = FLeRMCallback("record", family="gpt2", every=2, warmup=1).add_to(trainer)
        trainer.train()
        trajectory = callback.flerm.trajectory
        assert trajectory.losses == pytest.approx(losses(trainer)[::2], abs=1e-6)
        assert trajectory.learning_rates == pytest.approx([1e-2, 1e-2 * 4 / 6, 1e-2 * 2 / 6])
        assert trajectory.tokens.tolist() == [96, 288, 480]

    def test_logs_one_loss_for_accumulated_micro_batches(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=2)
        registry = f"file://{tmp_path}/registry"
        options = {"family": "gpt2", "every": 1, "warmup": 1, "registry": registry}
        callback = FLeRMCallback("record", **options).add_to(trainer)
        trainer.train()
        assert callback.flerm.trajectory.losses == pytest.approx(losses(trainer), abs=1e-6)
        with RegistryClient(registry) as client:
            (recording,) = client.recordings()
        assert recording.spec.config["batch_size"] == 6  # so that other batches can follow it
        # One that does has the Trainer's length too; one that was not told to only says so.
        options = {"family": "gpt2", "warmup": 1, "registry": registry, "record_every": None}
        for told, said in (
            ({"batch_size": 12}, "batch size 12 in 2 steps, where the base has 6 in 6: learning"),
            ({}, "a step of this run has 8 examples and a step of the base 6: betas and rates"),
        ):
            callback = FLeRMCallback("match", **options, **told)
            with pytest.warns(UserWarning, match=said):
                trainer_of(tmp_path, steps=2, callbacks=[callback]).train()

    def test_knows_losses_that_the_model_does_not_return_and_the_log_is_late_with(
        self, tmp_path: Path
    ) -> None:
        accumulated = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
        loud = trainer_of(tmp_path, label_smoothing_factor=0.1, **accumulated)
        loud.train()
        trainer = trainer_of(tmp_path, label_smoothing_factor=0.1, logging_steps=500, **accumulated)
        callback = FLeRMCallback("record", family="gpt2", every=1, warmup=1).add_to(trainer)
        trainer.train()
        assert callback.flerm.trajectory.losses == pytest.approx(losses(loud), abs=1e-6)

    @pytest.mark.parametrize("how", ["callbacks", "add_callback"])
    def test_works_as_one_of_the_callbacks(self, how: str, tmp_path: Path) -> None:
        smoothed = {"label_smoothing_factor": 0.1}  # a loss that the model does not return
        callback = FLeRMCallback("record", family="gpt2", every=1, warmup=1)
        trainer = trainer_of(
            tmp_path, callbacks=[callback] if how == "callbacks" else [], **smoothed
        )
        if how == "add_callback":
            trainer.add_callback(callback)
        trainer.train()
        assert callback.flerm.trajectory.losses == pytest.approx(losses(trainer), abs=1e-6)
        assert any("flerm/fslr/transformer.ln_f.weight" in row for row in trainer.state.log_history)
        assert not any(module._forward_hooks for module in trainer.model.modules())

    def test_one_callback_for_two_trainers_counts_each_loss_once(self, tmp_path: Path) -> None:
        callback = FLeRMCallback("record", family="gpt2", every=1, warmup=1)
        both = [trainer_of(tmp_path, steps=2, callbacks=[callback]) for _ in range(2)]
        for trainer in (*both, both[0]):
            trainer.train()
            assert callback.flerm.trajectory.losses == pytest.approx(losses(trainer), abs=1e-6)

    def test_a_second_training_is_a_second_recording(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, steps=2)
        callback = FLeRMCallback("record", family="gpt2", every=1, warmup=1).add_to(trainer)
        trainer.train()
        first = callback.flerm
        trainer.train()
        assert callback.flerm.recording_id != first.recording_id
        assert callback.flerm.trajectory.steps.tolist() == first.trajectory.steps.tolist() == [1, 2]
        assert callback.flerm.trajectory.losses == pytest.approx(losses(trainer), abs=1e-6)


class TestMatching:
    def test_gives_the_rates_and_losses_of_a_plain_loop(self, tmp_path: Path) -> None:
        keywords: dict[str, Any] = {
            "family": "gpt2",
            "every": 2,
            "warmup": 2,
            "targets": targets(),
            "seed": 3,
        }
        trainer = trainer_of(tmp_path, gpt2(dropout=0.0), data=Stream())
        callback = FLeRMCallback("match", probe=batches(), **keywords).add_to(trainer)
        trainer.train()

        model = gpt2(dropout=0.0)
        plain = trainer_of(tmp_path, model, data=Stream())
        optimizer, schedule = plain.create_optimizer(), plain.create_scheduler(6)
        seen = []
        with FLeRM.match(
            model, optimizer, probe=batches(), output=lambda m, b: m(**b).logits, **keywords
        ) as flerm:
            for step in range(6):
                loss = model(
                    **collated(step), num_items_in_batch=8 * 12
                ).loss  # as the Trainer counts them
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                seen.append(float(loss.detach()))
        assert losses(trainer) == pytest.approx(seen, rel=1e-6)
        assert callback.flerm.multipliers == flerm.multipliers
        assert callback.flerm.fslr == pytest.approx(flerm.fslr, rel=1e-4)
        assert set(flerm.multipliers.values()) != {1.0}

    @pytest.mark.parametrize(
        ("clock", "start", "base_step"),
        [
            ({"clock": "fraction"}, 3, 3.5),  # of the trainer's own 6 steps, and the base's 7
            ({"clock": "fraction", "total_steps": 9}, 3, 7 / 3),
            ({"clock": "tokens"}, 2, 4),  # of 96 tokens a step, and the base's 48
        ],
    )
    def test_follows_the_base_by_the_trainers_own_length_and_tokens(
        self, tmp_path: Path, clock: dict[str, Any], start: int, base_step: float
    ) -> None:
        names = list(targets())
        base = Trajectory(
            names,
            [()] * len(names),
            [1, 7],
            [[value] * len(names) for value in (1, 64)],
            tokens=[48, 7 * 48],
        )
        trainer = trainer_of(tmp_path)
        keywords = {
            "family": "gpt2",
            "warmup": 1,
            "targets": base,
            "start": start,
            "record_every": None,
        } | clock
        callback = FLeRMCallback("match", **keywords).add_to(trainer)
        trainer.train()
        assert callback.flerm.targets == pytest.approx(
            dict.fromkeys(names, 2 ** (base_step - 1)), rel=1e-12
        )

    def test_measures_under_the_trainers_autocast(self, tmp_path: Path) -> None:
        full, half = recorded_rows(tmp_path, bf16=False), recorded_rows(tmp_path, bf16=True)
        assert not np.array_equal(full, half)
        assert half == pytest.approx(full, rel=0.2)


def recorded_rows(folder: Path, **settings: Any) -> Any:
    trainer = trainer_of(folder, gpt2(dropout=0.0), steps=1, **settings)
    callback = FLeRMCallback("record", family="gpt2", probe=batches(), warmup=2).add_to(trainer)
    trainer.train()
    return callback.flerm.trajectory.values[0]


class TestLoggers:
    def test_the_trainers_own_loggers_get_every_measurement_and_still_every_loss(
        self, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
        trainer = trainer_of(tmp_path, report_to="tensorboard")
        callback = FLeRMCallback("record", family="gpt2", every=2, warmup=1).add_to(trainer)
        trainer.train()
        seen = EventAccumulator(str(tmp_path / "logs")).Reload()
        assert [event.step for event in seen.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
        name = "transformer.h.0.attn.c_attn.weight"
        fslrs = seen.Scalars(f"train/flerm/fslr/{name}")
        column = callback.flerm.trajectory.names.index(name)
        assert [event.step for event in fslrs] == [1, 3, 5]
        assert [event.value for event in fslrs] == pytest.approx(
            callback.flerm.trajectory.values[:, column].tolist()
        )
        assert len(seen.Scalars(f"train/flerm/lr/{name}")) == 3
        printed = capsys.readouterr().out
        assert "'loss'" in printed
        assert "flerm/" not in printed  # hundreds of numbers are no news for a console


class TestCheckpoints:
    def test_a_resumed_run_goes_on_bit_for_bit(self, tmp_path: Path) -> None:
        keywords: dict[str, Any] = {"family": "gpt2", "every": 2, "warmup": 2, "targets": targets()}
        trainer = trainer_of(tmp_path / "whole", save_strategy="steps", save_steps=3)
        whole = FLeRMCallback("match", **keywords).add_to(trainer)
        trainer.train()

        resumed = trainer_of(tmp_path / "second")
        again = FLeRMCallback("match", **keywords).add_to(resumed)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert losses(resumed) == losses(trainer)
        assert same_weights(resumed.model, trainer.model)
        assert again.flerm.trajectory == whole.flerm.trajectory
        assert again.flerm.recording_id == whole.flerm.recording_id
        assert again.flerm.multipliers == whole.flerm.multipliers

    def test_a_checkpoint_of_a_run_without_it_can_be_gone_on_from_with_it(
        self, tmp_path: Path
    ) -> None:
        trainer_of(tmp_path, save_strategy="steps", save_steps=3).train()
        trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2)
        callback = FLeRMCallback("record", family="gpt2", every=1, warmup=1).add_to(trainer)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert callback.flerm.measurements == 3

    def test_the_token_is_not_in_the_checkpoint(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=3)
        FLeRMCallback("record", family="gpt2", token="secret-token", warmup=1).add_to(trainer)
        trainer.train()
        state = (tmp_path / "checkpoint-3" / "trainer_state.json").read_text()
        assert "secret-token" not in state
        assert json.loads(state)["stateful_callbacks"]["FLeRMCallback"]["attributes"]["checkpoint"]


class TestRunsThatRaise:
    @pytest.mark.parametrize("added", [True, False])
    @pytest.mark.parametrize(
        ("error", "status"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted")]
    )
    def test_their_recording_ends_at_once(
        self, added: bool, error: Any, status: str, tmp_path: Path
    ) -> None:
        class Raising(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == 2:
                    raise error

        callback = FLeRMCallback("record", family="gpt2", registry=f"file://{tmp_path}/registry")
        trainer = trainer_of(tmp_path, callbacks=[] if added else [callback])
        if added:
            callback.add_to(trainer)
        trainer.add_callback(Raising())
        with pytest.raises(error):
            trainer.train()
        assert "step" not in vars(trainer.optimizer.optimizer)
        with RegistryClient(f"file://{tmp_path}/registry") as registry:
            (recording,) = registry.recordings()
        assert recording.status == status


def test_steps_through_a_gradient_scaler_are_seen(tmp_path: Path) -> None:
    """What fp16=True sets up on a GPU."""
    trainer = trainer_of(tmp_path)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    callback = FLeRMCallback("record", family="gpt2", every=2, warmup=1).add_to(trainer)
    trainer.train()
    assert callback.flerm.trajectory.steps.tolist() == [1, 3, 5]


class TestLoRA:
    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return get_peft_model(
            gpt2(), LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
        )

    def test_both_adapter_matrices_are_measured_from_the_second_step_on(
        self, tmp_path: Path, model: nn.Module
    ) -> None:
        trainer = trainer_of(tmp_path, model, steps=4)
        callback = FLeRMCallback("record", family="lora", every=2, warmup=1).add_to(trainer)
        trainer.train()
        trajectory = callback.flerm.trajectory
        assert trajectory.steps.tolist() == [1, 2, 3]
        assert set(trajectory.bands) == {"LoRA A", "LoRA B"}
        assert (trajectory.values[1:] > 0).all()
        assert "transformer.h.0.attn.c_attn.lora_A.weight" in trajectory.names

    def test_another_rank_is_matched(self, tmp_path: Path, model: nn.Module) -> None:
        base = trainer_of(tmp_path, model)
        recording = FLeRMCallback("record", family="lora", warmup=2).add_to(base)
        base.train()
        wider = get_peft_model(
            gpt2(), LoraConfig(r=16, target_modules=["c_attn"], fan_in_fan_out=True)
        )
        trainer = trainer_of(tmp_path, wider)
        matched = FLeRMCallback(
            "match", family="lora", warmup=2, targets=recording.flerm.trajectory
        ).add_to(trainer)
        trainer.train()
        wanted = {
            name: recording.flerm.trajectory.at(2 if "lora_A" in name else 1)[name]
            for name in matched.flerm.fslr
        }
        wanted = {name: value / matched.flerm.matched_fslr[name] for name, value in wanted.items()}
        assert len(wanted) == 4
        assert matched.flerm.multipliers == pytest.approx(
            wanted, rel=2 ** (1 / 32) - 1
        )  # rounded to 1/16 octave


class TestRefusals:
    def test_an_unknown_keyword_is_refused_where_it_is_written(self) -> None:
        with pytest.raises(InvalidInput, match=r"FLeRM.record takes no evry; it takes .*every"):
            FLeRMCallback("record", family="gpt2", evry=10)
        with pytest.raises(
            InvalidInput, match=r"mode='both' is not known; there are: record, match"
        ):
            FLeRMCallback("both", family="gpt2")

    def test_a_second_one_on_one_trainer_is_refused(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path)
        FLeRMCallback("record", family="gpt2").add_to(trainer)
        with pytest.raises(InvalidInput, match="the Trainer has an FLeRMCallback already"):
            FLeRMCallback("record", family="other").add_to(trainer)
        two = [FLeRMCallback("record", family=family) for family in ("gpt2", "other")]
        with pytest.raises(InvalidInput, match="the Trainer has an FLeRMCallback already"):
            trainer_of(tmp_path, callbacks=two).train()

    def test_callbacks_that_the_trainer_builds_anew_are_refused(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, restore_callback_states_from_checkpoint=True)
        with pytest.raises(
            InvalidInput, match="restore_callback_states_from_checkpoint=True is not allowed"
        ):
            FLeRMCallback("record", family="gpt2").add_to(trainer)
