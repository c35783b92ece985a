"""Terraform with AWS's own provider makes users, roles, inline policies and keys here, and finds no difference after."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.server import Server

# A folder in the layout of a filesystem mirror that holds hashicorp/aws; without it the test is left out.
PLUGINS = os.environ.get("OUTCROP_TEST_TERRAFORM_PLUGINS", "")
CONFIGURATION = """
terraform {
  required_providers {
    aws = { source = "hashicorp/aws" }
  }
}
provider "aws" {
  region = "%(region)s"
  endpoints {
    iam = "%(url)s"
    sts = "%(url)s"
  }
}
data "aws_caller_identity" "me" {}
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["bedrock.amazonaws.com"]
    }
  }
}
data "aws_iam_policy_document" "invoke" {
  statement {
    actions   = ["bedrock:InvokeModel"]
    resources = ["*"]
  }
}
resource "aws_iam_user" "ann" {
  name = "ann"
  tags = { team = "red" }
}
resource "aws_iam_user_policy" "invoke" {
  user   = aws_iam_user.ann.name
  name   = "invoke"
  policy = data.aws_iam_policy_document.invoke.json
}
resource "aws_iam_access_key" "key" { user = aws_iam_user.ann.name }
resource "aws_iam_service_specific_credential" "bearer" {
  user_name    = aws_iam_user.ann.name
  service_name = "bedrock.amazonaws.com"
}
resource "aws_iam_role" "reader" {
  name               = "reader"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}
resource "aws_iam_role_policy" "read" {
  role   = aws_iam_role.reader.name
  policy = data.aws_iam_policy_document.invoke.json
}
data "aws_iam_user" "ann" { user_name = aws_iam_user.ann.name }
data "aws_iam_role" "reader" { name = aws_iam_role.reader.name }
output "who" { value = data.aws_caller_identity.me.arn }
output "made" { value = "${data.aws_iam_user.ann.arn} ${data.aws_iam_role.reader.arn}" }
"""


def test_terraform_makes_finds_and_destroys_users_roles_policies_and_keys(server: Server, tmp_path: Path) -> None:
    keys = server.credentials
    (tmp_path / "main.tf").write_text(CONFIGURATION % {"region": keys.region, "url": server.url})
    (tmp_path / "rc").write_text("")
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": keys.access_key_id,
        "AWS_SECRET_ACCESS_KEY": keys.secret_access_key,
        "CHECKPOINT_DISABLE": "1",
        "TF_CLI_CONFIG_FILE": str(tmp_path / "rc"),
    }

    def terraform(*words: str) -> str:
        command = ["terraform", *words, "-no-color"]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
        )
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended.stdout

    terraform("init", f"-plugin-dir={PLUGINS}")
    made = terraform("apply", "-auto-approve")
    assert "6 added" in made
    assert f'made = "arn:aws:iam::{keys.account}:user/ann arn:aws:iam::{keys.account}:role/reader"' in made
    assert f'who = "{keys.user_arn}"' in made
    terraform("plan", "-detailed-exitcode")  # 2 where anything differs
    assert "6 destroyed" in terraform("destroy", "-auto-approve")
