from recipes.adversarial_robustness import main

main()
