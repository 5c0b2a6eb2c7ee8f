"""Self-distillation: the original model answers prompts, and what it says well becomes training data."""

from swaa.distill.filters import Filters
from swaa.distill.prompts import Prompt, read_prompts
from swaa.distill.run import distill
from swaa.distill.teachers import LocalTeacher, RemoteTeacher, Sampling, Teacher

__all__ = ["Filters", "LocalTeacher", "Prompt", "RemoteTeacher", "Sampling", "Teacher", "distill", "read_prompts"]
