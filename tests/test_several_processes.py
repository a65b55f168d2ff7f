"""The page on several processes: its recipes, and its arithmetic done again."""

import re
import subprocess

import pytest
import yaml
from torch.distributed.run import get_args_parser

from course_utils.commands.app import _command
from course_utils.networks import NetworkSpec
from notebooks.build import ROOT

PAGE = (ROOT / "docs" / "several-processes.md").read_text(encoding="utf-8")
NETWORKS = {"VoxelMorph": "voxelmorph", "pyramid": "pyramid"}


def block(language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    return found


def launched(script):
    """What torchrun would start: its own options, and the arguments of the command."""
    line = re.search(r"torchrun (.*)", script.replace("\\\n", " "))[1]
    # Words in place of what the shell knows; a list of nothing is no word.
    line = line.replace('"${resume[@]}"', "--resume").replace('"', "")
    words = re.sub(r"\$\w+", "1", line).split()
    options = get_args_parser().parse_args(words)
    assert options.module and options.training_script == "course_utils"
    return options, options.training_script_args


def check_command(arguments):
    """The options are those of `train`, and the processes can share the batch."""
    assert arguments[0] == "train"
    command = _command("train")
    context = command.make_context("train", arguments[1:], resilient_parsing=False)
    assert context.params["resume"] and context.params["dataset"] == "oasis"
    return context.params["batch_size"]


def check_shell(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_first_command_of_the_page_is_one():
    options, arguments = launched(block("sh"))
    context = _command("train").make_context("train", arguments[1:])
    assert context.params["batch_size"] % int(options.nproc_per_node) == 0


def test_the_slurm_script_starts_one_launcher_on_each_machine():
    script = block("bash")
    check_shell(script)
    wanted = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", script, re.M))
    assert script.startswith("#!/bin/bash\n#SBATCH ") and len(wanted) == script.count("#SBATCH")
    assert wanted["ntasks-per-node"] == "1" and re.fullmatch(r"\d\d:\d\d:\d\d", wanted["time"])
    options, arguments = launched(script)
    assert options.nproc_per_node == wanted["gpus-per-node"] and options.rdzv_backend == "c10d"
    assert check_command(arguments) % (int(wanted["nodes"]) * int(options.nproc_per_node)) == 0
    assert set(re.findall(r"\$\{?(SLURM_\w+)", script)) <= {"SLURM_JOB_NODELIST", "SLURM_NNODES", "SLURM_JOB_ID"}


def test_the_kubernetes_job_s_pods_find_the_first():
    service, job = yaml.safe_load_all(block("yaml"))
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    (container,) = pod["containers"]
    assert set(container) <= {"name", "image", "command", "args", "resources", "volumeMounts"}
    (script,) = container["args"]
    check_shell(script)
    options, arguments = launched(script)
    # Kubernetes names the pods of an indexed job by its index, and the service makes that a name for others.
    assert options.master_addr == f"{name}-0.{service['metadata']['name']}" and "$JOB_COMPLETION_INDEX" in script
    assert pod["subdomain"] == service["metadata"]["name"] and service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"  # headless: names, and no address between
    assert options.master_port == service["spec"]["ports"][0]["port"]
    assert int(options.nnodes) == spec["completions"]
    assert int(options.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert check_command(arguments) % (int(options.nnodes) * int(options.nproc_per_node)) == 0
    assert "exec torchrun" in script  # bash would keep the signal to itself
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    out = re.search(r"out=(\S+)", script)[1]
    assert out.startswith(mounts["course"] + "/")


@pytest.mark.parametrize("option", ["--painted", "--smoothness-range", "--augment", "--dice-weight", "--workers"])
def test_the_options_that_the_page_names_are_there(option):
    assert option in PAGE
    assert option in {name for parameter in _command("train").params for name in parameter.opts}


# --- arithmetic -------------------------------------------------------------------------------------------------------


def rows(first):
    """Cells of the page's table whose header begins with this cell."""
    table = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.M)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def known():
    """By network, the gradient in bytes and the step in milliseconds, as the page has them."""
    return {name: (int(size.replace(",", "")), float(step)) for name, _, size, step in rows("network")}


def exchange(gpus, size, bandwidth, latency):
    """Milliseconds of a step's two ring all-reduces, of `size` bytes and of hardly any; GB/s and microseconds."""
    return 1e3 * (2 * (gpus - 1) / gpus * size / (bandwidth * 1e9) + 2 * 2 * (gpus - 1) * latency * 1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_s_gradient_has_the_bytes_that_the_page_says(name):
    (said,) = [row for row in rows("network") if row[0] == name]
    parameters = list(NetworkSpec(NETWORKS[name], {"spatial_dims": 3}).build(device="meta").parameters())
    count = sum(parameter.numel() for parameter in parameters)
    assert said[1] == f"{count:,}"
    assert said[2] == f"{sum(parameter.numel() * parameter.element_size() for parameter in parameters):,}"
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| course_utils {name} \| fp32 \| {said[3]} \|", results, re.M)


def test_the_efficiencies_follow_from_what_is_assumed():
    networks = known()
    table = rows("GPUs")
    assert [int(row[0]) for row in table] == [8, 64, 64]
    for gpus, _, bandwidth, latency, *said in table:
        for name, (time, efficiency) in zip(networks, (said[:2], said[2:]), strict=True):
            size, step = networks[name]
            found = exchange(int(gpus), size, float(bandwidth), float(latency))
            assert (time, efficiency) == (f"{found:.2f}", f"{100 * step / (step + found):.0f} %"), (gpus, name)


def test_the_sentences_below_the_table_follow_too():
    size, step = known()["VoxelMorph"]
    whole = exchange(64, size, 40, 20)
    assert f"of the {whole:.1f} ms" in PAGE and f"take {exchange(64, size, 40, 0):.2f}." in PAGE
    said = re.search(r"VoxelMorph's (\d+) % become (\d+) %", PAGE)
    assert [int(n) for n in said.groups()] == [round(100 * n * step / (n * step + whole)) for n in (1, 4)]
