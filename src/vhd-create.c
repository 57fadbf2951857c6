/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-create: an empty dynamic or fixed VHD. */
#include "config.h"

#include <string.h>

#include "cli.h"

static const char help[] =
	"Usage: vhd-create [options] --size=N FILE\n"
	"Create an empty VHD.\n"
	"\n"
	"      --size=N         the size that the guest sees: bytes, or 512M, 10G, 2T\n"
	"      --type=TYPE      dynamic (default) or fixed\n"
	"      --block-size=N   unit of allocation, default 2M\n"
	"      --creator=CODE   creator code in the footer, default 'win '\n"
	"  -f, --force          replace FILE if it exists\n" CLI_HELP_COMMON;

enum { OPT_SIZE = CLI_TOOL, OPT_TYPE, OPT_BLOCK_SIZE, OPT_CREATOR };

static const struct option options[] = {
	CLI_COMMON_LONG,
	{"size", required_argument, NULL, OPT_SIZE},
	{"type", required_argument, NULL, OPT_TYPE},
	{"block-size", required_argument, NULL, OPT_BLOCK_SIZE},
	{"creator", required_argument, NULL, OPT_CREATOR},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

static void parse_creator(const char *s, struct img_create *o)
{
	size_t n = strlen(s);

	if (n == 0 || n > 4)
		cli_usage("--creator: one to four characters, not '%s'", s);
	for (size_t i = 0; i < n; i++)
		if (s[i] < ' ' || s[i] > '~')
			cli_usage("--creator: printable ASCII characters only");
	o->creator = s;
}

static void parse(int opt, struct img_create *o)
{
	uint64_t n;

	switch (opt) {
	case OPT_SIZE:
		if (!cli_size(optarg, &o->size))
			cli_usage("--size: '%s' is not a size", optarg);
		break;
	case OPT_TYPE:
		if (strcmp(optarg, "dynamic") != 0 && strcmp(optarg, "fixed") != 0)
			cli_usage("--type: '%s' is neither dynamic nor fixed", optarg);
		o->type = *optarg == 'd' ? IMG_DYNAMIC : IMG_FIXED;
		break;
	case OPT_BLOCK_SIZE:
		if (!cli_size(optarg, &n) || n == 0 || n > IMG_BLOCK_MAX)
			cli_usage("--block-size: '%s' is not a power of two from 4K to 256M",
				  optarg);
		o->block_size = (uint32_t)n;
		break;
	case OPT_CREATOR:
		parse_creator(optarg, o);
		break;
	case 'f':
		o->force = true;
		break;
	}
}

int main(int argc, char **argv)
{
	struct img_create o = {.type = IMG_DYNAMIC};
	struct img_err err = {0};
	struct cli_common common;
	int opt;

	cli_init(argv, "vhd-create", help);
	cli_common_init(&common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "f", options, NULL)) != -1)
		if (!cli_common(&common, opt, optarg))
			parse(opt, &o);
	if (argc - optind != 1)
		cli_usage(argc == optind ? "FILE is missing" : "one FILE only");
	if (o.size == 0)
		cli_usage("--size is needed, and not 0");
	cli_catch_signals();
	if (img_create(argv[optind], &o, &err) < 0)
		return cli_exit(cli_fail(&err));
	return cli_exit(0);
}
