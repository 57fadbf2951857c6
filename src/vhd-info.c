/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-info: what a disk is and what it stands on. */
#include "config.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "cli.h"

static const char help[] =
	"Usage: vhd-info [options] FILE...\n"
	"Show what a VHD is and what it stands on.\n"
	"\n"
	"      --chain          every layer from FILE down to the base\n"
	"      --map            where the content of the disk lies\n"
	"      --json           as one JSON document\n"
	"      --unlocked       look at a disk that is in use\n" CLI_HELP_CHAIN CLI_HELP_COMMON;

enum { OPT_CHAIN = CLI_TOOL, OPT_MAP, OPT_UNLOCKED };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"chain", no_argument, NULL, OPT_CHAIN},
	{"map", no_argument, NULL, OPT_MAP},
	{"json", no_argument, NULL, CLI_JSON},
	{"unlocked", no_argument, NULL, OPT_UNLOCKED},
	{NULL, 0, NULL, 0},
};

#define EPOCH 946684800 /* 2000-01-01 UTC, where VHD times begin */

struct job {
	struct cli_common common;
	bool chain, map, json;
	unsigned printed;
};

/* "" while unset. */
static const char *time_str(uint32_t stamp, char buf[32])
{
	time_t t = (time_t)stamp + EPOCH;
	struct tm tm;

	buf[0] = '\0';
	if (stamp && gmtime_r(&t, &tm))
		strftime(buf, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
	return buf;
}

static bool parent_is_raw(const struct img_info *i)
{
	static const uint8_t none[16];

	return memcmp(i->parent_uuid, none, 16) == 0;
}

static void json_or_null(const char *key, const char *value)
{
	printf(",\"%s\":", key);
	if (value && *value)
		cli_json_string(stdout, value);
	else
		fputs("null", stdout);
}

static void json_parent(const struct img_chain *c, unsigned layer)
{
	const struct img_info *i = img_layer_info(c, layer);
	char uuid[IMG_UUID_STR];

	fputs(",\"parent\":", stdout);
	if (!i->has_parent) {
		fputs("null", stdout);
		return;
	}
	img_uuid_str(i->parent_uuid, uuid);
	printf("{\"uuid\":%s%s%s", parent_is_raw(i) ? "" : "\"", parent_is_raw(i) ? "null" : uuid,
	       parent_is_raw(i) ? "" : "\"");
	json_or_null("name", i->parent_name);
	json_or_null("file", layer + 1 < img_layers(c) ? img_layer_path(c, layer + 1) : NULL);
	putchar('}');
}

/* Of a child alone nobody could tell. */
static bool sums_told(const struct img_chain *c, unsigned layer)
{
	return !img_layer_info(c, layer)->has_parent || layer + 1 < img_layers(c);
}

static void json_layer(const struct job *j, struct img_chain *c, unsigned layer)
{
	const struct img_info *i = img_layer_info(c, layer);
	char uuid[IMG_UUID_STR] = "", when[32], version[16] = "";

	if (i->has_uuid) {
		img_uuid_str(i->uuid, uuid);
		snprintf(version, sizeof(version), "%u.%u", i->creator_version >> 16,
			 i->creator_version & 0xffff);
	}
	fputs("{\"file\":", stdout);
	cli_json_string(stdout, img_layer_path(c, layer));
	printf(",\"format\":\"%s\",\"type\":\"%s\",\"size\":%" PRIu64 ",\"original_size\":%" PRIu64
	       ",\"file_size\":%" PRIu64 ",\"allocated\":%" PRIu64 ",\"block_size\":%" PRIu32
	       ",\"blocks\":%" PRIu32,
	       i->format, img_type_name(i->type), i->size, i->has_uuid ? i->original_size : i->size,
	       i->file_size, i->allocated, i->block_size, i->blocks);
	json_or_null("uuid", uuid);
	json_or_null("creator", i->creator);
	json_or_null("creator_version", version);
	json_or_null("created", time_str(i->timestamp, when));
	printf(",\"geometry\":{\"cylinders\":%u,\"heads\":%u,\"sectors\":%u},\"saved_state\":%s,\"hidden\":%s",
	       i->cylinders, i->heads, i->sectors, i->saved_state ? "true" : "false",
	       i->hidden ? "true" : "false");
	json_parent(c, layer);
	json_or_null("warning", i->warning);
	printf(",\"sums_known\":%s", !sums_told(c, layer)	? "null"
				     : img_sums_known(c, layer) ? "true"
								: "false");
	printf(",\"unlocked\":%s", j->common.open.unlocked ? "true" : "false");
}

static void text_layer(const struct job *j, struct img_chain *c, unsigned layer)
{
	const struct img_info *i = img_layer_info(c, layer);
	char uuid[IMG_UUID_STR], when[32], size[32], file_size[32], allocated[32];
	bool raw = i->type == IMG_RAW;

	cli_print_text(stdout, img_layer_path(c, layer), "");
	printf("\n  type        %s%s%s\n  size        %" PRIu64 " (%s)\n", raw ? "" : i->format,
	       raw ? "" : " ", img_type_name(i->type), i->size, cli_human(i->size, size));
	if (i->has_uuid && i->original_size != i->size)
		printf("  originally  %" PRIu64 " (%s)\n", i->original_size,
		       cli_human(i->original_size, size));
	printf("  file        %" PRIu64 " (%s), %s allocated\n", i->file_size,
	       cli_human(i->file_size, file_size), cli_human(i->allocated, allocated));
	if (i->block_size)
		printf("  blocks      %" PRIu32 " of %" PRIu32 " bytes\n", i->blocks,
		       i->block_size);
	if (i->has_uuid) {
		img_uuid_str(i->uuid, uuid);
		printf("  uuid        %s\n  creator     %s %u.%u\n", uuid, i->creator,
		       i->creator_version >> 16, i->creator_version & 0xffff);
		printf("  created     %s\n  geometry    %u/%u/%u\n",
		       *time_str(i->timestamp, when) ? when : "unset", i->cylinders, i->heads,
		       i->sectors);
	}
	if (i->has_parent) {
		img_uuid_str(i->parent_uuid, uuid);
		fputs("  parent      ", stdout);
		cli_print_text(stdout,
			       layer + 1 < img_layers(c) ? img_layer_path(c, layer + 1)
			       : i->parent_name		 ? i->parent_name
							 : "(unnamed)",
			       "");
		printf("\n  parent uuid %s\n", parent_is_raw(i) ? "none: a raw disk" : uuid);
	}
	if (i->saved_state)
		puts("  saved state a saved machine depends on this disk");
	if (i->hidden)
		puts("  hidden      only a parent (XenServer)");
	if (sums_told(c, layer) && img_sums_known(c, layer))
		puts("  sums        known: its content sum is told without reading it");
	if (i->warning) {
		fputs("  warning     ", stdout);
		cli_print_text(stdout, i->warning, "");
		putchar('\n');
	}
	if (j->common.open.unlocked)
		puts("  unlocked    the disk may be changing while it is looked at");
}

static void print_run(const struct job *j, const struct img_run *run, bool first)
{
	bool data = run->kind == IMG_DATA_RUN;

	if (j->json) {
		printf("%s{\"offset\":%" PRIu64 ",\"length\":%" PRIu64 ",\"type\":\"%s\"",
		       first ? "" : ",", run->off, run->len, data ? "data" : "zero");
		if (data)
			printf(",\"layer\":%u,\"file_offset\":%" PRIu64, run->layer, run->file_off);
		putchar('}');
	} else if (data) {
		printf("  %12" PRIu64 " %12" PRIu64 " data %u %" PRIu64 "\n", run->off, run->len,
		       run->layer, run->file_off);
	} else {
		printf("  %12" PRIu64 " %12" PRIu64 " zero\n", run->off, run->len);
	}
}

static int print_map(const struct job *j, struct img_chain *c, struct img_err *err)
{
	uint64_t size = img_size(c);
	struct img_run run;
	int rc = 0;

	fputs(j->json ? ",\"map\":[" : "  map (offset, length, kind, layer, offset in its file)\n",
	      stdout);
	for (uint64_t off = 0; off < size && rc == 0; off += run.len) {
		rc = cli_interrupted() ? img_err_set(err, IMG_AGAIN, "interrupted")
				       : img_map(c, off, size - off, img_layers(c), &run, err);
		if (rc == 0)
			print_run(j, &run, off == 0);
	}
	if (j->json)
		putchar(']');
	return rc;
}

static int show(struct job *j, const char *path, struct img_err *err)
{
	struct img_chain *c;
	int rc = 0;

	if (img_open(&c, path, &j->common.open, err) < 0) {
		if (err->code == IMG_AGAIN && !j->common.open.unlocked)
			cli_warn("--unlocked looks at a disk that is in use");
		return -1;
	}
	if (j->json && j->printed++)
		putchar(',');
	if (j->json)
		json_layer(j, c, 0);
	else
		text_layer(j, c, 0);
	for (unsigned i = 0; j->chain && i < img_layers(c); i++) {
		if (j->json) {
			fputs(i ? "," : ",\"chain\":[", stdout);
			json_layer(j, c, i);
			putchar('}');
		} else if (i) {
			text_layer(j, c, i);
		}
	}
	if (j->json && j->chain)
		putchar(']');
	if (j->map)
		rc = print_map(j, c, err);
	if (j->json)
		putchar('}');
	img_close(c);
	return rc;
}

int main(int argc, char **argv)
{
	struct job j = {0};
	int opt, status = 0;

	cli_init(argv, "vhd-info", help);
	cli_common_init(&j.common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT, options, NULL)) != -1) {
		if (cli_common(&j.common, opt, optarg))
			continue;
		j.chain |= opt == OPT_CHAIN;
		j.map |= opt == OPT_MAP;
		j.json |= opt == CLI_JSON;
		j.common.open.unlocked |= opt == OPT_UNLOCKED;
	}
	if (optind == argc)
		cli_usage("FILE is missing");
	cli_catch_signals();
	j.common.open.single = !j.chain && !j.map;
	j.common.open.maybe_raw = true;
	if (j.json)
		fputs("{\"version\":1,\"files\":[", stdout);
	for (; optind < argc; optind++) {
		struct img_err err = {0};

		if (show(&j, argv[optind], &err) < 0) {
			int rc = cli_fail(&err);

			status = status ? status : rc;
		}
	}
	if (j.json)
		fputs("]}\n", stdout);
	return cli_exit(status);
}
