"""Break one line at a time in a copy of the tree, and check that a test fails (`make mutate`)."""

# ruff: noqa: E501 (a mutation is one row of a table)

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600


class Mutation(NamedTuple):
    """A change that breaks one place in a file, and the tests, one of which must fail."""

    words: str
    file: str  # below workbench/
    old: str
    new: str
    tests: str  # below tests/


ALGORITHM, OPTIONS, NOISE = "test_algorithm.py", "test_ppo_options.py", "test_noise.py"
TRL, PREFIXES, OVERSAMPLING = "test_trl_losses.py", "test_prefix_values.py", "test_oversampling.py"
PROTOCOL, GENERATION = "test_protocol.py", "test_generation_settings.py"
GROUPS, PREFERENCES = "test_groups.py", "test_dpo_raft.py"
POLICY, LOGPROBS, CHECKS = "test_policy.py", "test_logprobs.py", "test_selfcheck.py"
PPO = "test_ppo.py"  # slow as a whole, so one test of it
RESUMED = f"{PPO}::test_a_stopped_run_resumes_to_the_same_metrics_and_weights"
CORPUS, SCORING, VERDICTS, CACHE = (
    "test_corpus_metrics.py",
    "test_scoring.py",
    "test_verdicts.py",
    "test_evaluation_cache.py",
)
SIGNIFICANCE, EVIDENCE, RETENTION = "test_significance.py", "test_evidence.py", "test_non_inferiority.py"
AGREEMENT, VARIANCE, CLUSTERS = "test_agreement.py", "test_variance_components.py", "test_clusters.py"
TOKENS = "test_evaluation_recipe.py::test_tokens_have_their_log_ratios_and_join_to_the_text"
PAIRED = "test_evaluation_recipe.py::test_the_first_seed_samples_as_it_does_alone"

# fmt: off
MUTATIONS = [
    Mutation("sign of the KL penalty", "ppo/algorithm.py", "rewards = -kl_coef", "rewards = kl_coef", ALGORITHM),
    Mutation("sign of k3's log ratio", "ppo/algorithm.py", "(-log_ratio).clamp(", "log_ratio.clamp(", ALGORITHM),
    Mutation("k2 is not halved", "ppo/algorithm.py", "0.5 * log_ratio.square()", "log_ratio.square()", ALGORITHM),
    Mutation("score at the first token", "ppo/algorithm.py", "scatter_add(1, last,", "scatter_add(1, 0 * last,", ALGORITHM),
    Mutation("lambda left out", "ppo/algorithm.py", "gamma * lam * advantage_after", "gamma * advantage_after", ALGORITHM),
    Mutation("advantages pass through the mask", "ppo/algorithm.py", "advantage_after) * mask[:, t]", "advantage_after)", ALGORITHM),
    Mutation("RLOO's mean has the response itself", "ppo/algorithm.py", "- groups) / (samples - 1)", "- 0 * groups) / samples", GROUPS),
    Mutation("GRPO never divides", "ppo/algorithm.py", "if norm_by_std else centered", "if False else centered", GROUPS),
    Mutation("groups of neighbors in the batch, not of a prompt", "ppo/algorithm.py", "groups = rewards.view(-1, samples)\n    centered", "groups = rewards.view(samples, -1)\n    centered", GROUPS),
    Mutation("the penalty in the loss has k3's own gradient", "ppo/algorithm.py", "return (log_ratio.exp() * kl_penalty", "return (log_ratio.exp().detach() * kl_penalty", GROUPS),
    Mutation("sign of the penalty in the loss", "ppo/losses.py", "loss = loss + kl_coef", "loss = loss - kl_coef", GROUPS),
    Mutation("the texts of PPO-ptx are unlearned", "ppo/pretraining_texts.py", "loss = -without_ends", "loss = without_ends", "test_ptx.py"),
    Mutation("the EOS behind a text is learned", "ppo/pretraining_texts.py", "without_ends(scores.logprobs, batch.response_mask)", "scores.logprobs", "test_ptx.py"),
    Mutation("micro batches of texts count alike", "ppo/pretraining_texts.py", "for row in rows)\n", "for row in rows[:size])\n", "test_ptx.py"),
    Mutation("GRPO has both penalties", "ppo/advantages.py", "0.0 if is_kl_in_loss(config) else state.kl_coef", "state.kl_coef", GROUPS),
    Mutation("advantages of groups are whitened", "ppo/trainer.py", "is not None and has_values(config):", "is not None:", GROUPS),
    Mutation("prompts of a batch are interleaved", "ppo/sampler.py", "rows, seed) for _ in range(samples)]", "rows, seed)] * samples", GROUPS),
    Mutation("GDPO standardizes over the batch alone", "ppo/algorithm.py", "groups = terms.view(len(terms), -1, samples)", "groups = terms.view(len(terms), 1, -1)", TRL),
    Mutation("GDPO loses the weights", "ppo/algorithm.py", "weights.view(-1, 1, 1) * centered", "centered", TRL),
    Mutation("DPO prefers the worst", "ppo/preferences.py", "rewards[::2], rewards[1::2]", "rewards[1::2], rewards[::2]", PREFERENCES),
    Mutation("DPO without its reference", "ppo/preferences.py", "(logprobs - ref_logprobs) * mask", "logprobs * mask", PREFERENCES),
    Mutation("DPO counts pairs of equals", "ppo/losses.py", "(pairs.losses * decided).sum()", "pairs.losses.sum()", PREFERENCES),
    Mutation("the last of equals is the best", "ppo/preferences.py", "== value.unsqueeze(1)).long().argmax(dim=1)", "== value.unsqueeze(1)).long().flip(1).argmax(dim=1)", PREFERENCES),
    Mutation("groups that differ by prompts of the batch", "ppo/preferences.py", "len(groups), device=rewards.device) * samples", "len(groups), device=rewards.device)", PREFERENCES),
    Mutation("RAFT learns from the worst", "ppo/losses.py", "Objective(\n        best.unsqueeze(1)", "Objective(\n        worst.unsqueeze(1)", PREFERENCES),
    Mutation("RAFT has no KL term", "ppo/losses.py", "penalty = kl_coef *", "penalty = 0 *", PREFERENCES),
    Mutation("rejected responses are read as chosen", "ppo/offline.py", "PAIR[index % 2]", "PAIR[0]", PREFERENCES),
    Mutation("whitening without the mask", "ppo/algorithm.py", "(values - total / count.clamp(min=1)) * mask", "values - total / count.clamp(min=1)", ALGORITHM),
    Mutation("one token divides by zero", "ppo/algorithm.py", "if count < 2:", "if count < 1:", ALGORITHM),
    Mutation("the clip takes the better side", "ppo/algorithm.py", "torch.maximum(unclipped, clipped)", "torch.minimum(unclipped, clipped)", ALGORITHM),
    Mutation("log ratio not clamped", "ppo/algorithm.py", "mask).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)\n    ratio = ", "mask)\n    ratio = ", ALGORITHM),
    Mutation("value loss takes the smaller error", "ppo/algorithm.py", "torch.maximum(error, clipped_error)", "torch.minimum(error, clipped_error)", ALGORITHM),
    Mutation("KL controller not clipped", "ppo/algorithm.py", "min(max(kl / target - 1, -0.2), 0.2)", "kl / target - 1", ALGORITHM),
    Mutation("scores divided by the variance", "ppo/algorithm.py", "(scores - mean) / max(std, 1e-8)", "(scores - mean) / max(std**2, 1e-8)", OPTIONS),
    Mutation("missing stop token is rewarded", "ppo/algorithm.py", "/ scale - missing", "/ scale + missing", OPTIONS),
    Mutation("cosine decays only to a half", "models/optimizer.py", "math.cos(math.pi * progress)", "math.cos(math.pi * progress / 2)", OPTIONS),
    Mutation("mask from the pad id", "models/sampling.py", "return stops_before == 0", "return response_ids != stop_ids[0]", POLICY),
    Mutation("inverse sampling one token too far", "models/sampling.py", "torch.searchsorted(cumulated, drawn, right=True)", "(torch.searchsorted(cumulated, drawn, right=True) + 1)", POLICY),
    Mutation("sampling ignores the temperature", "models/sampling.py", "torch.softmax(scores / self.temperature,", "torch.softmax(scores,", POLICY),
    Mutation("padding counts as a stop token", "models/sampling.py", "(torch.isin(response_ids, stop_ids) & response_mask)", "torch.isin(response_ids, stop_ids)", POLICY),
    Mutation("position_ids left out", "models/policy.py", "position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),", "", POLICY),
    Mutation("decoder starts from token 2", "models/policy.py", "response_ids[:, :1], self.start_id)", "response_ids[:, :1], 2)", POLICY),
    Mutation("log-probabilities one token late", "models/policy.py", "first = prompt_ids.shape[1] - 1", "first = prompt_ids.shape[1]", POLICY),
    Mutation("reference is the base, not the SFT adapter", "models/policy.py", 'return "sft" if "sft" in self.model.peft_config else "base"', 'return "base"', POLICY),
    Mutation("encoder padded on the left", "models/policy.py", "slice(0, len(prompt)) if self.is_encoder_decoder", "slice(0, len(prompt)) if False", POLICY),
    Mutation("value head not at zero", "models/value_head.py", "nn.init.zeros_(head.weight)", "nn.init.ones_(head.weight)", POLICY),
    Mutation("separate values read the policy's states", "models/policy.py", 'elif "value" in self.trained_adapters:', 'elif "values" in self.trained_adapters:', OPTIONS),
    Mutation("temperature does not divide in the sweep", "models/logprobs.py", "logits /= temperature", "logits /= 1", LOGPROBS),
    Mutation("frozen head not rescaled at a new maximum", "models/logprobs.py", "denominator.mul_(rescale)", "denominator.mul_(1)", LOGPROBS),
    Mutation("sign of the entropy's gradient", "models/logprobs.py", "mean_logit * mean_weight - mean_product", "mean_product - mean_logit * mean_weight", LOGPROBS),
    Mutation("sign of the entropy bonus", "ppo/losses.py", "- config.entropy_coef * entropy", "+ config.entropy_coef * entropy", OPTIONS),
    Mutation("gradients not clipped", "ppo/update.py", "config.max_grad_norm)", "1e9)", OPTIONS),
    Mutation("target_kl ignored", "ppo/update.py", "if kl / max(tokens, 1) > config.target_kl:", "if False:", OPTIONS),
    Mutation("warm-up of the values trains the policy", "ppo/update.py", "for parameter in frozen:", "for parameter in ():", OPTIONS),
    Mutation("one epoch, whatever is configured", "ppo/micro_batches.py", "for _ in range(epochs):", "for _ in range(1):", OPTIONS),
    Mutation("mean over rows instead of tokens", "ppo/update.py", "accelerator.num_processes / max(count, 1)", "accelerator.num_processes / len(groups)", OPTIONS),
    Mutation("mean of the means of micro batches", "ppo/update.py", "scaler.scale(micro.loss * weight)", "scaler.scale(micro.loss * weight * len(groups) / len(part))", OPTIONS),
    Mutation("a step is taken on a NaN gradient", "ppo/update.py", "if torch.isfinite(norm):", "if True:", f"{PPO}::test_a_gradient_that_is_not_finite_skips_the_step_and_stops_after_a_few"),
    Mutation("the reference scores as the policy", "ppo/rollout.py", 'policy.logprobs("reference",', 'policy.logprobs("policy",', OPTIONS),
    Mutation("special tokens shown to the reward", "ppo/rollout.py", "skip_special_tokens=True", "skip_special_tokens=False", CHECKS),
    Mutation("values of the reward include the token", "ppo/prefix_values.py", "torch.cat((start, prefix_scores[:, :-1]), dim=1)", "prefix_scores", PREFIXES),
    Mutation("values of the reward start at 0", "ppo/prefix_values.py", "(total / count.clamp(min=1)).expand", "(0 * total).expand", PREFIXES),
    Mutation("the first score of a response without tokens counts", "ppo/prefix_values.py", "count, total = reduce_sum(torch.stack((is_first.sum().float(), (prefix_scores[:, 0] * is_first).sum())))", "count, total = reduce_sum(torch.stack((is_first.sum().float() + 1, (prefix_scores[:, 0] * is_first).sum())))", PREFIXES),
    Mutation("prefixes without their last token", "ppo/prefix_values.py", "ids[row][:end] for", "ids[row][: end - 1] for", PREFIXES),
    Mutation("a prefix has another response's columns", "ppo/prefix_values.py", "repeated = [rows[row] for", "repeated = [rows[0] for", PREFIXES),
    Mutation("scaled advantages are shifted", "ppo/prefix_values.py", "return values * mask * torch", "return (values - values[mask].mean()) * mask * torch", PREFIXES),
    Mutation("prefixes are not clipped", "ppo/advantages.py", "prefix_scores = transform(rollout.prefix_scores, torch.zeros_like(mask))", "prefix_scores = rollout.prefix_scores", PREFIXES),
    Mutation("the nearest to the median are taken", "ppo/selection.py", "distance.argsort(descending=True", "distance.argsort(descending=False", OVERSAMPLING),
    Mutation("groups that are alike are taken", "ppo/selection.py", "spread.argsort(descending=True", "spread.argsort(descending=False", OVERSAMPLING),
    Mutation("the rows are not chosen", "ppo/selection.py", "[rows[i] for i in index.tolist()]", "rows[: len(index)]", OVERSAMPLING),
    Mutation("the mean score is that of the chosen", "ppo/metrics.py", "gather(rollout.sampled_scores)", "gather(rollout.scores)", OVERSAMPLING),
    Mutation("the log ratio to the reference is not squared", "ppo/pretraining_texts.py", "0.5 * (scores.logprobs - reference).square()", "(scores.logprobs - reference)", "test_ptx.py"),
    Mutation("the reference is the policy", "ppo/pretraining_texts.py", 'module.logprobs("reference", batch, 1.0) if', 'module.logprobs("policy", batch, 1.0) if', "test_ptx.py"),
    Mutation("whitened returns", "ppo/advantages.py", "advantages, (advantages + rollout.values) * mask)", "advantages, (algorithm.whiten(advantages, mask) + rollout.values) * mask)", OPTIONS),
    Mutation("the learning rate does not decay", "models/optimizer.py", 'group["lr"] = peak * multiplier', 'group["lr"] = peak', OPTIONS),
    Mutation("adaptive coefficient not applied", "ppo/advantages.py", "0.0 if is_kl_in_loss(config) else state.kl_coef)", "0.0 if is_kl_in_loss(config) else config.kl_coef)", OPTIONS),
    Mutation("KL coefficient not restored", "ppo/checkpoint.py", 'TrainState(**content["train_state"])', 'TrainState(**content["train_state"] | {"kl_coef": 0.01})', OPTIONS),
    Mutation("optimizer not restored", "ppo/checkpoint.py", "optimizer.load_state_dict(restored)", "pass", RESUMED),
    Mutation("score statistics not restored", "ppo/checkpoint.py", '"train_state": asdict(state),', '"train_state": asdict(state) | {"score_std": None},', OPTIONS),
    Mutation("a checkpoint of another version is read", "ppo/checkpoint.py", 'if content.get("train_state", {}).keys() != {item.name for item in fields(TrainState)}:', "if False:", "test_checkpoints.py::test_a_checkpoint_of_another_version_is_refused_in_one_line"),
    Mutation("initial scores of every step", "ppo/trainer.py", "or self.state.score_std is not None:", "or False:", OPTIONS),
    Mutation("random state not restored after a failure", "ppo/trainer.py", "checkpoint.restore_random_state(random_state)  # a resumed", "pass  # a resumed", "test_resume.py::test_a_reward_that_fails_changes_nothing_either"),
    Mutation("KL at the start not checked", "ppo/selfcheck.py", "if not kl_per_token <= limits.kl:", "if False:", f"{PPO}::test_a_policy_that_is_not_its_reference_is_refused_before_any_update"),
    Mutation("a shared reference passes", "ppo/selfcheck.py", "parameter.data_ptr() in trained for", "False for", CHECKS),
    Mutation("weights without a gradient pass", "ppo/selfcheck.py", "if unreached:", "if False:", CHECKS),
    Mutation("a sanity pair that ties or inverts passes", "ppo/selfcheck.py", "if not good > bad:", "if not good != bad:", CHECKS),
    # The evaluation.
    Mutation("interval of 90 %", "evaluation/statistics.py", "ERROR = 0.05", "ERROR = 0.1", "test_statistics.py"),
    Mutation("the difference the wrong way round", "evaluation/statistics.py", "changes = second - first", "changes = first - second", "test_statistics.py"),
    Mutation("ties count as a rise", "evaluation/statistics.py", "rose, fell, tail = int((differences > 0).sum())", "rose, fell, tail = int((differences >= 0).sum())", "test_statistics.py"),
    Mutation("the ends of a bootstrap-t exchanged", "evaluation/statistics.py", "mean - max(float(high), student) * error, mean - min(float(low), -student) * error", "mean + min(float(low), -student) * error, mean + max(float(high), student) * error", "test_statistics.py"),
    Mutation("narrower than Student's t", "evaluation/statistics.py", "student = student_quantile(tail, prompts - 1)", "student = 0.0", "test_statistics.py"),
    Mutation("one prompt has an interval", "evaluation/statistics.py", "if totals.size > 1:", "if totals.size > 0:", "test_statistics.py"),
    Mutation("p of Student's t alone", "evaluation/statistics.py", "p = 2 * max(student_tail(distance, prompts - 1), beyond)", "p = 2 * student_tail(distance, prompts - 1)", SIGNIFICANCE),
    Mutation("p of the other tail of the bootstrap", "evaluation/statistics.py", "studentized if mean > 0 else -studentized[::-1]", "studentized if mean < 0 else -studentized[::-1]", SIGNIFICANCE),
    Mutation("p does not share the error", "evaluation/statistics.py", "p=min(1.0, comparisons * p)", "p=min(1.0, p)", SIGNIFICANCE),
    Mutation("a rate's variance is that of the data", "evaluation/significance.py", "variance = prompts * max(2 * falls + difference * (1 - difference), 0.0)", "variance = max(rose + fell - (rose - fell) ** 2 / prompts, 0.0)", SIGNIFICANCE),
    Mutation("McNemar's test has one side", "evaluation/significance.py", "min(1.0, 2 * tail / 2**changed)", "min(1.0, tail / 2**changed)", SIGNIFICANCE),
    Mutation("Holm's correction is Bonferroni's", "evaluation/significance.py", "(len(ordered) - rank) * value", "len(ordered) * value", SIGNIFICANCE),
    Mutation("Holm's correction is not monotone", "evaluation/significance.py", "largest = max(largest, min(1.0,", "largest = max(0.0, min(1.0,", SIGNIFICANCE),
    Mutation("metrics without a direction count for Holm", "evaluation/verdicts.py", "tested = [difference.metric.direction is not None for difference in differences]", "tested = [True for difference in differences]", EVIDENCE),
    Mutation("McNemar's test of several samples", "evaluation/scoring.py", "metric.name in RATES and is_single and distinct_prompts", "metric.name in RATES and distinct_prompts", EVIDENCE),
    Mutation("McNemar's test of rows that share a prompt", "evaluation/scoring.py", "metric.name in RATES and is_single and distinct_prompts", "metric.name in RATES and is_single", EVIDENCE),
    Mutation("the words of a table are not corrected", "evaluation/results.py", "self.holm_adjusted is not None and self.holm_adjusted >= ERROR", "False", EVIDENCE),
    Mutation("a smaller effect for fewer prompts", "evaluation/verdicts.py", "changes.std(ddof=1)) / math.sqrt(changes.size)", "changes.std(ddof=1)) / changes.size", RETENTION),
    Mutation("kept where the mean is inside the margin", "evaluation/non_inferiority.py", 'return "kept" if high < 0', 'return "kept" if low + high < 0', RETENTION),
    Mutation("a rise is as harmful as a fall", "evaluation/non_inferiority.py", '1 if retained.harmful == "rise" else -1', "1", RETENTION),
    Mutation("a relative margin of a mean taken as known", "evaluation/non_inferiority.py", "limits = before * (1 + sign * margin)", "limits = before + sign * margin * before.mean()", RETENTION),
    Mutation("few prompts keep a quantity", "evaluation/non_inferiority.py", "if beyond.prompts >= MINIMUM_PROMPTS else", "if True else", RETENTION),
    Mutation("the gap the wrong way round", "evaluation/reward_gap.py", "paired_difference(by_judge, by_reward,", "paired_difference(by_reward, by_judge,", RETENTION),
    Mutation("the gap of the means alone fails", "evaluation/guards.py", "gap.low <= MAX_REWARD_GAP", "gap.gap <= MAX_REWARD_GAP", RETENTION),
    Mutation("tied scores are ranked in order", "rewards/ranking.py", "(np.cumsum(sizes) - (sizes - 1) / 2)", "np.cumsum(sizes)", "test_statistics.py"),
    Mutation("pseudovalues without the jackknife's factor", "evaluation/statistics.py", "influence = (rest.size - 1) *", "influence = 1 *", CORPUS),
    Mutation("n-grams of several rows belong to one", "evaluation/metrics/text_statistics.py", "row if owner.get(ngram, row) == row else None", "row", CORPUS),
    Mutation("BLEU without smoothing", "evaluation/metrics/__init__.py", 'smooth_method="exp"', 'smooth_method="none"', CORPUS),
    Mutation("samples of a prompt left out one by one", "evaluation/corpus_metrics.py", "np.repeat(numbers, [len(row) for row in texts])", "np.arange(len(flat))", CORPUS),
    Mutation("kappa without chance", "evaluation/agreement.py", "expected = toxic * other_toxic + (total - toxic) * (total - other_toxic)", "expected = 0", AGREEMENT),
    Mutation("kappa of one class is perfect", "evaluation/agreement.py", "return None if expected == total**2 else", "return 1.0 if expected == total**2 else", AGREEMENT),
    Mutation("correlation of the values, not of their ranks", "evaluation/agreement.py", "one, other = ranks(first), ranks(second)", "one, other = first, second", AGREEMENT),
    Mutation("a constant judge has a rank correlation", "evaluation/agreement.py", "if any(np.ptp(values)", "if False and any(np.ptp(values)", AGREEMENT),
    Mutation("toxic above the threshold only", "evaluation/agreement.py", "toxic, other_toxic = one >= threshold, other >= threshold", "toxic, other_toxic = one > threshold, other > threshold", AGREEMENT),
    Mutation("flips the wrong way round", "evaluation/agreement.py", "toxic_to_clean=int((was_toxic & ~is_toxic).sum())", "toxic_to_clean=int((~was_toxic & is_toxic).sum())", AGREEMENT),
    Mutation("agreement about the first model alone", "evaluation/reliability.py", "for values in by_title.values()])", "for values in list(by_title.values())[:1]])", AGREEMENT),
    Mutation("prompts nested in seeds", "evaluation/variance_components.py", "(unit_square - cell_square) / (seeds * samples)", "unit_square / (seeds * samples)", VARIANCE),
    Mutation("prompts x seeds with the variance of samples", "evaluation/variance_components.py", "(cell_square - error) / samples", "cell_square / samples", VARIANCE),
    Mutation("a degree of freedom too many for samples", "evaluation/variance_components.py", "within / (units * seeds * (samples - 1))", "within / (units * seeds * samples)", VARIANCE),
    Mutation("negative variances", "evaluation/variance_components.py", "0.0 if estimate <= rounding else estimate", "estimate", VARIANCE),
    Mutation("more samples do what more seeds do", "evaluation/variance_components.py", "squared_error(variances, units, seeds, 2 * samples)", "squared_error(variances, units, 2 * seeds, samples)", VARIANCE),
    Mutation("more seeds do not average seeds", "evaluation/variance_components.py", '"seeds": seeds,', '"seeds": 1,', VARIANCE),
    Mutation("rows of a prompt are units", "evaluation/variance_components.py", "prompt_contributions(column, numbers)", "prompt_contributions(column)", VARIANCE),
    Mutation("clusters are resampled by prompt", "evaluation/scoring.py", "groups if clusters is None else clusters", "groups", CLUSTERS),
    Mutation("prompts are counted as clusters", "evaluation/scoring.py", "prompts=prompts, clusters=difference.prompts", "clusters=difference.prompts", CLUSTERS),
    Mutation("clusters that share a prompt stay apart", "evaluation/clusters.py", "for labeling in (labels, *others):", "for labeling in (labels,):", CLUSTERS),
    Mutation("rows without a cluster are one cluster", "evaluation/clusters.py", "if value is None or not str(value).strip()", "if False and not str(value).strip()", CLUSTERS),
    Mutation("prompts are enough where clusters are few", "evaluation/results.py", "return self.prompts if self.clusters is None else self.clusters", "return self.prompts", CLUSTERS),
    Mutation("clusters of the first run alone", "comparison/run_comparison.py", "joined_clusters(*clustered, [", "joined_clusters(clustered[0], [", CLUSTERS),
    Mutation("a link to the disagreements of the other judge", "report/judges_section.py", "(agreement.second_only, judges[::-1])", "(agreement.second_only, judges)", "test_report_judges.py"),
    Mutation("a flip of any model", "report/report.js", "const isCompared = model === before || model === after;", "const isCompared = true;", "test_report_judges.py"),
    Mutation("the worst that helps", "report/variance_section.py", "least = min(errors.values())", "least = max(errors.values())", "test_report_variance.py"),
    Mutation("perplexity of the prompts' means", "evaluation/corpus_metrics.py", "for rest in total - by_prompt]", "for rest in by_prompt]", CORPUS),
    Mutation("seeds share their samples", "evaluation/scoring.py", "row[seed * samples : (seed + 1) * samples]", "row[:samples]", SCORING),
    Mutation("the difference is that of the first sample", "evaluation/statistics.py", "np.divide(summed.sum(axis=(1, 2)), counts, out=means, where=counts > 0)", "means = values[:, 0, 0].copy()", SCORING),
    Mutation("a sample without a value counts as 0", "evaluation/statistics.py", "counts = known.sum(axis=(1, 2))", "counts = np.full(len(values), known[0].size)", PROTOCOL),
    Mutation("diversity of a prompt by n-grams", "evaluation/metrics/text_statistics.py", "total = sum(map(len, split))", "total = sum(len(words) - n + 1 for words in split)", PROTOCOL),
    Mutation("the protocol's threshold is toxic", "config/derived.py", "math.nextafter(evaluation.threshold, math.inf)", "evaluation.threshold", PROTOCOL),
    Mutation("the end of a text counts for its fluency", "evaluation/fluency.py", "ids = [tokens[:-1] for tokens in ended]", "ids = ended", PROTOCOL),
    Mutation("a perplexity of ten thousand is counted in", "evaluation/fluency.py", "np.where(values < OUTLIER, values", "np.where(values <= OUTLIER, values", PROTOCOL),
    Mutation("perplexity of texts as a mean of texts", "evaluation/text_sets.py", "corpus_perplexity(by_text * tokens, tokens, numbers)", "corpus_perplexity(by_text, tokens**0, numbers)", PROTOCOL),
    Mutation("a nucleus without the token that reaches it", "models/sampling.py", "last = (~reached).sum(dim=1, keepdim=True).clamp(", "last = ((~reached).sum(dim=1, keepdim=True) - 1).clamp(min=0, ", GENERATION),
    Mutation("a sample outside of the nucleus stays", "models/sampling.py", "        if len(rows):\n            token[rows] =", "        if False:\n            token[rows] =", GENERATION),
    Mutation("every row gets the first prompt's cache", "models/shared_prompts.py", "cache.batch_select_indices(group)", "cache.batch_select_indices(0 * group)", GENERATION),
    Mutation("the worst of all seeds together", "evaluation/completion_metrics.py", "max_toxicity(p)[..., None]", "max_toxicity(p.reshape(len(p), 1, -1)).repeat(p.shape[1], axis=1)[..., None]", SCORING),
    Mutation("rows without a reference score 0", "evaluation/completion_metrics.py", "np.full(len(self.completions), np.nan)", "np.zeros(len(self.completions))", SCORING),
    Mutation("rows without a value count in the mean", "evaluation/scoring.py", "known = values[np.isfinite(values)]", "known = np.nan_to_num(values)", SCORING),
    Mutation("a rise is always better", "evaluation/verdicts.py", '"better" if (difference.low > 0) == (direction == "higher") else "worse"', '"better" if difference.low > 0 else "worse"', VERDICTS),
    Mutation("few prompts are evidence", "evaluation/verdicts.py", "if difference.prompts < MINIMUM_PROMPTS or not (difference.low", "if not (difference.low", VERDICTS),
    Mutation("half the power", "evaluation/verdicts.py", "(_confidence(comparisons) + POWER) * deviation", "_confidence(comparisons) * deviation", VERDICTS),
    Mutation("the reward alone makes it better", "evaluation/verdicts.py", 'elif fell and by_reward in (None, "better"):', 'elif by_reward == "better":', VERDICTS),
    Mutation("no judge can make it worse", "evaluation/verdicts.py", "    if rose:", "    if False:", VERDICTS),
    Mutation("a bound holds in one direction only", "evaluation/guards.py", "within = limits.low <= after <= limits.high", "within = limits.low <= after", "test_guards.py"),
    Mutation("chance fails a guard", "evaluation/guards.py", "passed=within or bool(doubt)", "passed=within", "test_guards.py"),
    Mutation("flat text passes where there are references", "evaluation/guards.py", "low = MIN_REFERENCE_PERPLEXITY_RATIO * references", "low = 0.0", "test_reference_perplexity.py"),
    Mutation("references without their end of text", "data/encoding.py", "return [ids if ids[-1:] == [eos] else [*ids, eos] for ids in apart], merged", "return apart, merged", "test_reference_perplexity.py"),
    Mutation("a fall only the reward sees passes", "evaluation/guards.py", "passed=bool(fell) and not rose", "passed=not rose", "test_guards.py"),
    Mutation("a judge that contradicts the reward is ignored", "evaluation/guards.py", "passed=bool(fell) and not rose", "passed=bool(fell)", "test_guards.py"),
    Mutation("runs are compared before their training", "comparison/run_comparison.py", "value_of(example, metric, run.results.after)", "value_of(example, metric, run.results.before)", "test_run_comparison.py"),
    Mutation("scores of different rewards are compared", "comparison/run_comparison.py", "if metric not in different:", "if True:", "test_run_comparison.py"),
    Mutation("a block's other tokens may arrive before its earliest", "models/noise.py", "times = first + exponentials(", "times = exponentials(", NOISE),
    Mutation("the first token of a block is always the earliest", "models/noise.py", "counters + WHICH) * sizes)", "counters + WHICH) * 0)", NOISE),
    Mutation("half of a noise key is not used", "models/noise.py", "state += streams.second.unsqueeze(1)", "state += 0", NOISE),
    Mutation("a block is skipped that could hold the sample", "models/noise.py", "> reached.unsqueeze(1)).nonzero", "> reached.unsqueeze(1) + 3).nonzero", NOISE),
    Mutation("scaled gradients are clipped", "ppo/update.py", "        scaler.unscale_(optimizer)\n", "", "test_precision.py"),
    Mutation("a centered head has the gradient of an uncentered one", "models/logprobs.py", "(weight[ids] - center - mean_weight)", "(weight[ids] - mean_weight)", LOGPROBS),
    Mutation("a padded row may score otherwise", "models/architecture.py", "difference = mean_difference(scored, plain, batch.response_mask)", "difference = 0.0", "test_architecture.py"),
    Mutation("values worse than a constant pass", "ppo/learning_signal.py", "if median >= -MARGIN:", "if median >= -100:", "test_learning_signal.py"),
    Mutation("KL with the wrong sign", "evaluation/generation.py", "log_ratios.sum(dim=1).tolist(), (-base", "(-log_ratios).sum(dim=1).tolist(), (-base", TOKENS),
    Mutation("KL against the base", "evaluation/generation.py", 'logprobs(policy, "reference",', 'logprobs(policy, "base",', TOKENS),
    Mutation("every completion has the first seed", "evaluation/generation.py", "[derive_seed(seed, index) for index, seed in part]", "[derive_seed(sampling.seeds[0], index) for index, _ in part]", PAIRED),
    Mutation("other weights, the same completions", "evaluation/cache.py", '"weights": list(weights),\n            "alpha"', '"weights": [],\n            "alpha"', f"{CACHE}::test_other_weights_sample_anew"),
    Mutation("other prompts, the same completions", "evaluation/cache.py", "list(prompt_ids)", "len(prompt_ids)", f"{CACHE}::test_what_completions_depend_on_has_them_sampled_anew"),
    Mutation("an adapter may rewrite the base", "models/adapters.py", "        if not leaves_base:", "        if False:", "test_adapters.py"),
    Mutation("an adapter of other shapes joins", "models/adapters.py", "if expected.get(name) != shapes.get(name):", "if False:", "test_adapters.py"),
    Mutation("each micro batch counts the same in SFT", "sft/trainer.py", "if num_items_in_batch is None else num_items_in_batch)", "if True else num_items_in_batch)", "test_sft.py"),
    Mutation("SFT leaves rows out of a step", "config/derived.py", "if rows % size == 0)", "if size)", "test_sft.py"),
    Mutation("memory is never given back", "models/memory.py", "            self.current -= size\n", "", "test_memory.py"),
    Mutation("a cache is counted without its prompts", "models/memory.py", "input_ids=torch.cat((prompts, responses), dim=1), use_cache=True", "input_ids=responses, use_cache=True", "test_memory.py"),
    Mutation("the reference takes no memory", "models/memory_plan.py", "return 2 + has_value_model(config, stage)", "return 1 + has_value_model(config, stage)", "test_memory.py"),
    Mutation("plans put rewards onto the GPU", "run/distributed.py", "if IS_PLANNING.get() or not has_gpus():", "if not has_gpus():", "test_launch.py"),
    Mutation("a quantized model has a static cache", "models/decoding.py", " and not is_quantized", "", "test_decoding.py"),
]
# fmt: on


class Result(NamedTuple):
    """Whether a mutation was caught."""

    mutation: Mutation
    caught: bool
    by: str  # the first test that failed, or the reason why there is none


def main() -> int:
    """Try every mutation, print the table, and return 1 if one survives or does not apply."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="store the result as Markdown")
    parser.add_argument("--only", default="", metavar="WORDS", help="only mutations whose words or file contain this")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in f"{m.words} {m.file}"]
    commit = described_commit()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        preload()
        tests = list(dict.fromkeys(test for m in chosen for test in m.tests.split()))
        status, failed = run_tests(tree, tests)
        if status != 0:
            print(f"the tests must pass before anything is broken: {failed}", file=sys.stderr)
            return 1
        results = []
        for mutation in chosen:
            result = attempt(tree, mutation)
            results.append(result)
            print(f"{'caught  ' if result.caught else 'SURVIVED'} | {mutation.words} | {result.by}", flush=True)
    caught = sum(result.caught for result in results)
    print(f"{caught} of {len(results)} caught")
    if arguments.write:
        arguments.write.write_text(markdown(results, commit), encoding="utf-8")
    return 0 if caught == len(results) else 1


def copy_tree(tree: Path) -> None:
    """Copy what git tracks or would track."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)


def attempt(tree: Path, mutation: Mutation) -> Result:
    """Break the file, run its tests and restore it."""
    path = tree / "workbench" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        return Result(mutation, False, f"{mutation.old!r} occurs {text.count(mutation.old)} times in {mutation.file}")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        status, failed = run_tests(tree, mutation.tests.split())
    finally:
        path.write_text(text, encoding="utf-8")
    return Result(mutation, status == 1, failed)


def run_tests(tree: Path, tests: list[str]) -> tuple[int, str]:
    """Return the exit status of pytest, 1 where a test failed, and the first test that did."""
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(output.fileno(), stream.fileno())
            os.chdir(tree)
            sys.path[0] = str(tree)
            sys.dont_write_bytecode = True  # a file restored within the same second must not run its broken bytecode
            signal.alarm(SECONDS)
            options = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = pytest.main([*options, *(f"tests/{test}" for test in tests)])
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        text = output.read()
    failure = re.search(r"^FAILED (.+?)(?: - |$)", text, flags=re.MULTILINE)
    if status == 0:
        return 0, "no test"
    return status, failure[1] if failure else f"exit {status}: {text.strip().splitlines()[-1:]}"


def preload() -> None:
    """Import the packages that the tests need once, so that a forked run starts at once."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in ("accelerate", "peft", "transformers.models.gpt2.modeling_gpt2", "transformers.models.t5.modeling_t5"):
        importlib.import_module(name)


def described_commit() -> str:
    """Return the commit of the tree, marked if it has changes."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, encoding="utf-8", check=True).stdout.strip()


def markdown(results: list[Result], commit: str) -> str:
    """Return the table with its commit and date."""
    rows = [f"| {r.mutation.words} | `workbench/{r.mutation.file}` | `{r.by}` |\n" for r in results]
    return (
        "# Mutations\n\n`make mutate` applies one bug at a time to a copy of the source and checks that a test fails. "
        f"Last run:\ncommit {commit}, {datetime.date.today()}: {sum(r.caught for r in results)} of {len(results)} "
        f"caught.\n\n| bug | file | first test that failed |\n|---|---|---|\n{''.join(rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
