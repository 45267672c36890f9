from recipes.adversarial_robustness import main
from recipes.shell import one_line_errors

with one_line_errors("recipes.adversarial_robustness"):
    main()
