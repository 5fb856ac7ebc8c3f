"""Contract tests for classes of your own: call them from your package's pytest."""

from safe_rlhf_v.testing.backbone import CHECKS, Case, check_backbone, example_case

__all__ = ["CHECKS", "Case", "check_backbone", "example_case"]
