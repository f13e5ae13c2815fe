"""Installed as ``optimum.commands.register.edgevlm``, where ``optimum-cli`` looks for commands."""

from optimum.commands.export.base import ExportCommand

from edgevlm.export.optimum_command import EdgeVLMExportCommand

REGISTER_COMMANDS = [(EdgeVLMExportCommand, ExportCommand)]
