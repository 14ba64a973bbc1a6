"""Every call that removes or replaces a file is listed here, with what proves that the file is the program's own."""

import ast

from tests.support.calls import functions_with

# Named anywhere, called or handed on: `atexit.register(shutil.rmtree, ...)`.
REMOVERS = {"unlink", "rmtree", "rmdir", "removedirs", "rename", "renames", "move", "rm", "rm_file", "remove_folder"}
WRITERS = {"truncate", "ftruncate", "write_bytes", "write_text", "replace_file", "copyfile", "copy2", "copytree"}
LIBRARIES = {
    "savefig",
    "save_file",
    "write_table",
    "ParquetWriter",
    "SummaryWriter",
    "open_memmap",
    "pipe_file",
    "put_file",
}
MODES = ("w", "a", "r+", "+")  # of open(): all but "x" replace, change or lengthen what is there

# What proves ownership ─► the functions that remove or replace files.
PROOF = {
    "what the image is built of, in the stage that builds it; the lists that it has just made": (
        "docker.contents.for_people",
        "docker.contents.main",
        "docker.trim.main",
    ),
    "a folder that the doctor has just made, or one of its prefix that is an hour old": (
        "launch.common.folder_needs._append",
        "launch.common.folder_needs._folders",
        "launch.common.folder_checks._is_removed",
        "launch.common.folder_needs._lock",
        "launch.common.folder_needs._map",
        "launch.common.folder_needs._replace",
        "launch.common.folder_needs._rewrite",
        "launch.common.folder_needs._room",
        "launch.common.folder_needs._sync",
        "launch.common.folder_checks.try_all",
        "launch.common.folder_needs.try_need",
        "launch.common.folder_meeting._say",
        "launch.common.folder_meeting.meet",
    ),
    "a dataset's output: locked, refused if it holds other things (refuse_foreign), its plan is read first": (
        "preprocess.dataset.schema.write_shard_table",
        "preprocess.dataset.writer._Media.__init__",
        "preprocess.dataset.writer._adopt",
        "preprocess.dataset.writer._write_files",
        "preprocess.dataset.writer._write_meta",
        "preprocess.dataset.writer.write_dataset",
        "preprocess.encode.decoder_main.Server._write",
        "preprocess.encode.shard.growing_shard",
        "preprocess.encode.shared_shard.SharedShard._write",
        "preprocess.encode.shared_shard._append",
        "preprocess.encode.tar_writer.TarWriter.abandon",
        "preprocess.jobs.output.FolderOutput.remove",
        "preprocess.jobs.output.UrlOutput.publish",
        "preprocess.jobs.output.UrlOutput.remove",
        "preprocess.jobs.shard_writer.ShardWriter._write",
        "preprocess.plan.plan.write_plan",
    ),
    "named like a dataset's, beside a plan that only a ShardWriter writes, and only where it began without any": (
        "preprocess.jobs.shard_writer.ShardWriter.abort",
        "preprocess.jobs.shard_writer.ShardWriter._begin",
    ),
    "shards that the plan of this output names, and that are not finished": (
        "preprocess.jobs.build._remove_leftovers",
    ),
    "a plan, a dataset.json or the shard's own table that is MAE3D's names each of them (dataset_files)": (
        "preprocess.jobs.build._publish_plan",
    ),
    "TEMPORARY_PREFIX, which no other program uses": (
        "mae3d.checkpoints.retention.sweep",
        "mae3d.io.files.replace_file",
        "preprocess.jobs.estimate._tried",
        "preprocess.jobs.output_state.sweep",
    ),
    "a lock's name in full, made by O_EXCL or a hard link, with its owner as MAE3D writes it": (
        "launch.common.sole_writer.sole_writer",
        "mae3d.io.lock.Lock.release",
        "mae3d.io.lock._acquire",
        "mae3d.io.lock._exclude",
        "mae3d.io.lock.take",
        "mae3d.io.lock_store.FolderLockStore._now",
        "mae3d.io.lock_store.FolderLockStore._written",
        "mae3d.io.lock_store.FolderLockStore.create",
        "mae3d.io.lock_store.FolderLockStore.remove",
        "mae3d.io.lock_store.FolderLockStore.replace",
        "mae3d.io.lock_store.UrlLockStore.remove",
        "mae3d.io.lock_store.UrlLockStore.heartbeat",
    ),
    "a folder made for this process; a dead one's name has its host, namespace and process id": (
        "preprocess.__main__._foreseen",
        "launch.export._made_aside",
        "launch.push.preview",
        "launch.push.push",
        "launch.inference.probing._tokens",
        "preprocess.jobs.output.UrlOutput.work",
        "preprocess.sources.fetched_files.Kept._fetch",
        "preprocess.sources.fetched_files.Kept._make_room",
        "preprocess.sources.fetched_files._process_folder",
        "preprocess.sources.fetched_files._remove_own",
        "preprocess.sources.tar_files._Members.get",
    ),
    "the settings in its metadata; TEMPORARY_PREFIX, which no other program uses": (
        "preprocess.inspect.curate._flagged",
        "preprocess.inspect.curate._measure_shard",
        "preprocess.inspect.curate.curate",
    ),
    "a name with a hash of the source that it is compiled from, in a folder named mae3d of the caches": (
        "pipelines.decoding.native.compiled",
    ),
    "no file of anybody's: memory, or /proc": (
        "launch.report.moments_page._picture",
        "launch.report.moments_page._strip",
        "launch.report.masks._pictures",
        "launch.report.page._inlined",
        "launch.report.timeline_page._jpeg",
        "pipelines.decoding.self_test._plain_batch",
        "preprocess.encode.decoder_main.main",
        "preprocess.encode.images.encode_jpeg",
        "preprocess.inspect.report._strip",
        "preprocess.workers.decoder._Child.__init__",
    ),
    "a name with a hash of the table beside it, which is written only if there is no such file": (
        "launch.inference.vector_index._make",
    ),
    "a mark in its head (refuse_foreign, refuse_other_page), looked for before anything is computed": (
        "launch.inference.embedding_map.draw_map",
        "launch.compare.compare",
        "launch.preview.preview",
        "launch.report.moments_page.write_page",
        "launch.report.page.write_report",
        "launch.visualize._claim_folder",
        "mae3d.tracking.plots.save_figure",
        "preprocess.inspect.filmstrip.write_filmstrip",
        "preprocess.inspect.report.write_report",
    ),
    "the ledger is not there, and train/ only beside the marker of an unfinished demo": (
        "preprocess.demo.clips.render_demo",
    ),
    "the settings in the table or beside its shards; without them no file has these names (begin)": (
        "launch.common.tables.write_rows",
        "launch.inference.classification.classify",
        "launch.inference.phases.judge",
        "launch.inference.sharded_table.ShardedTable._remove_folder",
        "launch.inference.sharded_table.ShardedTable.begin",
        "launch.inference.sharded_table.ShardedTable.merge",
        "launch.inference.sharded_table.ShardedTable.write",
        "launch.inference.sharded_table._write_groups",
        "launch.inference.sharded_table._fill_mine",
        "launch.inference.timeline.write_tables",
        "launch.probe.probe",
        "launch.report.timeline_page.write_page",
    ),
    "a run's folder: config.yaml was compared, or written where no name of a run was (Run.check)": (
        "launch.training.pretrain_eval.Monitor._save_picture",
        "mae3d.checkpoints.format.finish",
        "mae3d.checkpoints.mirror._fetch",
        "mae3d.checkpoints.mirror.restore",
        "mae3d.checkpoints.retention.keep_best",
        "mae3d.tracking.run_dir.Run.claim",
        "mae3d.tracking.run_dir.Run.cut_metrics",
        "mae3d.tracking.run_dir.Run.end",
        "mae3d.tracking.run_dir.Run.heartbeat",
        "mae3d.tracking.run_dir.Run.write_metrics",
        "mae3d.tracking.run_dir.Run._append",
        "mae3d.tracking.trackers.TensorBoard.__init__",
        "mae3d.tracking.trackers.WeightsAndBiases._remember",
        "mae3d.training.loop.TrainingLoop.end_step",
        "mae3d.training.loop.TrainingLoop.save",
    ),
    "a checkpoint's name, no file in it but a checkpoint's, and one that only ours have (foreign)": (
        "mae3d.checkpoints.format.put_in_place",
        "mae3d.checkpoints.format.remove",
        "mae3d.checkpoints.mirror.Mirror._retain",
    ),
    "the config.yaml behind the URL is this run's, and was written before anything else (Mirror._push)": (
        "mae3d.checkpoints.mirror.Mirror._push",
        "mae3d.checkpoints.mirror.Mirror._send_checkpoint",
        "mae3d.checkpoints.mirror.Mirror._send_small",
    ),
    "the caller's: only the functions of this list call it": (
        "launch.export._save_foreign",
        "mae3d.io.contact_sheet._save_gif",
        "mae3d.io.contact_sheet.save_animation",
        "mae3d.io.label_maps.write_ids",
        "mae3d.io.files.write_text",
        "mae3d.io.storage.Storage.create.upload",
        "mae3d.io.storage.Storage.put.upload",
        "mae3d.io.storage.Storage.remove",
        "mae3d.io.storage.Storage.remove_folder",
        "mae3d.io.storage.Storage.write.upload",
        "mae3d.weights.card.write_card",
        "mae3d.weights.graphs.save_bare",
        "mae3d.weights.graphs.save_program",
        "mae3d.weights.videomae.save_videomae",
        "mae3d.weights.tensors.save_tensors",
        "mae3d.weights.tensors.stream_tensors",
    ),
    "the cache's marker and names, a regular file of this user, and the time that only it gives (is_ours)": (
        "pipelines.storage.cache.Cache._download",
        "pipelines.storage.cache.Cache._locked",
        "pipelines.storage.cache.Cache.discard",
        "pipelines.storage.cache.Cache.fetch",
        "pipelines.storage.ownership.create_locked",
        "pipelines.storage.ownership.remove_unlocked",
    ),
    "no file: tensors get other names": ("mae3d.weights.wrappers.renamed",),
    "beside a page with the mark, which is written before the first picture (visualize._claim_folder, "
    "propagate._claim, Board)": (
        "launch.inference.propagation.carry",
        "launch.propagate._claim",
        "launch.report.board.Board._copy_pictures",
        "launch.report.board.Board._write_data",
        "launch.report.board.Board.write",
        "launch.propagate._write_results",
        "launch.report.masks.write_page",
        "launch.report.attention._draw",
        "launch.report.attention.attention_section",
        "launch.report.neighbours._draw",
        "launch.report.reconstruction.draw",
        "launch.report.reconstruction.draw_best",
    ),
}


def is_destructive(node: ast.AST) -> bool:
    """Return whether an expression removes, replaces or changes files, as far as its names show."""
    if isinstance(node, ast.Attribute | ast.Name):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        return name in REMOVERS | WRITERS | LIBRARIES or name == "O_TRUNC"
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    receiver = getattr(getattr(node.func, "value", None), "id", "")
    if name == "open":
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        modes = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        return any(set("waxr+b") >= set(mode) and any(part in mode for part in MODES) for mode in modes)
    if not isinstance(node.func, ast.Attribute):
        return False
    if name == "replace":  # a path's has one argument, a string's has two, dataclasses' has names
        return receiver == "os" or (len(node.args) == 1 and not node.keywords)
    if name in ("put", "write"):  # a storage's; a file's and a queue's have one
        return len(node.args) == 2
    if name == "copy":
        return receiver == "shutil"
    return name in ("remove", "save")


def test_every_deletion_says_what_proves_that_the_file_is_ours() -> None:
    listed = [function for functions in PROOF.values() for function in functions]
    found = functions_with(is_destructive, kind=ast.expr)
    assert not found - set(listed), "say in PROOF what proves that what these remove or replace is the program's own"
    assert sorted(found) == sorted(listed)
