/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line of the sender; send.h does the work. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "send.h"

static const char help[] =
	"Usage: vhd-send [OPTION]... DISK > STREAM\n"
	"       vhd-send [OPTION]... DISK | ssh HOST vhd-recv FILE\n"
	"Sends what the guest sees of DISK and its parents as a stream (vhd-stream(5)) on stdout.\n"
	"\n"
	"      --from=ANCESTOR     only what lies above ANCESTOR, a parent in DISK's chain\n"
	"      --against=SUMS      only what differs from a stale copy with this vhd-sum --blocks\n"
	"      --verify-base       read ANCESTOR and send its content sum along\n"
	"      --compress[=LEVEL]  compress with zstd where it pays (level 1 to 19; default 1)\n"
	"      --threads=N         threads that compress, 1 to 8 (default: one for each core)\n"
	"      --rate-limit=RATE   at most RATE bytes a second (10M, 100mbit)\n"
	"      --resume=TOKEN      go on where vhd-recv --token says; empty: from the start\n"
	"      --rate-file=FILE    the same as FILE says, read again at SIGHUP; 0: no limit\n"
	"      --checkpoint=SIZE   a place to go on after every SIZE bytes (at most 256M)\n"
	"      --receipt=FILE      identity, sums and counts of what was sent, in JSON\n"
	"      --raw               DISK is a raw disk\n"
	"  -n, --dry-run[=map]     only say what would be sent, exactly; =map: at most, without\n"
	"                          reading data\n"
	"      --json              the dry run's answer in JSON\n"
	"  -f, --force             replace an existing receipt\n"
	"      --parent-dir=DIR    parents may lie below DIR too (repeatable)\n"
	"      --parent-anywhere   parents may lie anywhere\n"
	"      --progress=json     progress as JSON lines on stderr\n"
	"  -q, --quiet             no progress\n"
	"  -h, --help\n"
	"  -V, --version\n";

enum { MAX_LEVEL = 19, MAX_THREADS = 8 };

enum {
	OPT_FROM = CLI_TOOL,
	OPT_VERIFY_BASE,
	OPT_COMPRESS,
	OPT_THREADS,
	OPT_RATE,
	OPT_RECEIPT,
	OPT_RAW,
	OPT_RESUME,
	OPT_CHECKPOINT,
	OPT_RATE_FILE,
	OPT_AGAINST,
};

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"from", required_argument, NULL, OPT_FROM},
	{"verify-base", no_argument, NULL, OPT_VERIFY_BASE},
	{"compress", optional_argument, NULL, OPT_COMPRESS},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"rate-limit", required_argument, NULL, OPT_RATE},
	{"rate-file", required_argument, NULL, OPT_RATE_FILE},
	{"against", required_argument, NULL, OPT_AGAINST},
	{"receipt", required_argument, NULL, OPT_RECEIPT},
	{"raw", no_argument, NULL, OPT_RAW},
	{"checkpoint", required_argument, NULL, OPT_CHECKPOINT},
	{"resume", required_argument, NULL, OPT_RESUME},
	{"dry-run", optional_argument, NULL, 'n'},
	{"json", no_argument, NULL, CLI_JSON},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

/* 1 to MAX; 0: not such a number. */
static unsigned number(const char *s, long max)
{
	char *end;
	long v = strtol(s, &end, 10);

	return end == s || *end || v < 1 || v > max ? 0 : (unsigned)v;
}

static unsigned cores(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (unsigned)n;
}

static void set_option(struct send *s, int opt)
{
	switch (opt) {
	case OPT_FROM:
		s->from = optarg;
		break;
	case OPT_VERIFY_BASE:
		s->verify_base = true;
		break;
	case OPT_COMPRESS:
		s->level = optarg ? (int)number(optarg, MAX_LEVEL) : 1;
		if (!s->level)
			cli_usage("--compress=%s: a level is 1 to 19", optarg);
		break;
	case OPT_THREADS:
		s->to.threads = number(optarg, MAX_THREADS);
		if (!s->to.threads)
			cli_usage("--threads=%s: a number from 1 to 8", optarg);
		break;
	case OPT_RATE:
		if (!cli_rate(optarg, &s->rate) || !s->rate)
			cli_usage("--rate-limit=%s: not a rate", optarg);
		break;
	case OPT_AGAINST:
		s->sums = optarg;
		break;
	case OPT_RATE_FILE:
		s->rate_file = optarg;
		break;
	case OPT_RECEIPT:
		s->receipt = optarg;
		break;
	case OPT_CHECKPOINT:
		if (!cli_size(optarg, &s->to.checkpoint) || !s->to.checkpoint ||
		    s->to.checkpoint > STREAM_MAX_CHECKPOINT)
			cli_usage("--checkpoint=%s: not a size up to 256M", optarg);
		break;
	case OPT_RESUME:
		s->resume = *optarg ? optarg : NULL;
		break;
	case OPT_RAW:
		s->common.open.raw = true;
		break;
	case 'n':
		if (optarg && strcmp(optarg, "map"))
			cli_usage("--dry-run=%s: only =map is known", optarg);
		s->dry = optarg ? DRY_MAP : DRY_EXACT;
		break;
	case CLI_JSON:
		s->json = true;
		break;
	case 'f':
		s->force = true;
		break;
	default:
		cli_usage("option %d is not handled", opt);
	}
}

static void parse(struct send *s, int argc, char **argv)
{
	int opt;

	cli_common_init(&s->common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "nf", options, NULL)) != -1)
		if (!cli_common(&s->common, opt, optarg))
			set_option(s, opt);
	if (argc - optind != 1)
		cli_usage(argc == optind ? "which disk?" : "one disk a stream");
	s->disk = argv[optind];
	if (s->sums && s->from)
		cli_usage("either --against or --from");
	if (s->rate && s->rate_file)
		cli_usage("either --rate-limit or --rate-file");
	if (s->to.threads && !s->level)
		cli_usage("--threads goes with --compress");
	if (s->verify_base && !s->from)
		cli_usage("--verify-base goes with --from");
	if (s->json && !s->dry)
		cli_usage("--json goes with --dry-run; --receipt=FILE reports on a stream");
	if (s->receipt && s->dry)
		cli_usage("a dry run has no receipt");
	if (!s->dry && isatty(STDOUT_FILENO))
		cli_usage("stdout is a terminal; send into a pipe or a file");
	if (s->dry)
		s->to.fd = -1; /* it only counts */
	if (!s->to.threads)
		s->to.threads = cores();
}

int main(int argc, char **argv)
{
	struct send s = {.to = {.fd = STDOUT_FILENO, .name = "standard output"}};
	struct img_err err = {0};
	int rc;

	cli_init(argv, "vhd-send", help);
	parse(&s, argc, argv);
	cli_catch_signals();
	if (cli_usable(STDOUT_FILENO))
		rc = send_disk(&s, &err);
	else
		rc = img_err_set(&err, IMG_IO, "standard output is closed");
	send_end(&s);
	return cli_exit(rc ? cli_fail(&err) : 0);
}
