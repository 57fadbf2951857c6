/* SPDX-License-Identifier: BSD-2-Clause */
/* Runs a fuzzer's inputs without libFuzzer: replay-NAME FILE… Any compiler will do, any sanitizer
 * too. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "fuzz.h"

int main(int argc, char **argv)
{
	static uint8_t buf[1 << 20];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rb");
		/* Exactly as long as it is, so that a look behind its end is seen. */
		size_t n = f ? fread(buf, 1, sizeof(buf), f) : 0;
		uint8_t *input = malloc(n ? n : 1);

		if (!f || ferror(f) || !input) {
			perror(argv[i]);
			return 66;
		}
		for (size_t k = 0; k < n; k++)
			input[k] = buf[k];
		fprintf(stderr, "%s\n", argv[i]);
		(void)LLVMFuzzerTestOneInput(input, n);
		free(input);
		fclose(f);
	}
	printf("%d inputs\n", argc - 1);
	return 0;
}
